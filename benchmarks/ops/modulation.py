"""Modulation against the published code: focal modulation (FocalNet) and large kernel attention (VAN)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from attnzoo.kernels import depthwise_conv, focal_modulate, large_kernel_attention

from .case import Case, parameters


def focal(batch: int, size: int, channels: int, *kernels: int) -> Case:
    def ours(q: Tensor, context: Tensor, gates: Tensor, weight: Tensor, bias: Tensor, *levels: Tensor) -> Tensor:
        return focal_modulate(q, context, gates, list(levels), weight, bias)

    def official(q: Tensor, context: Tensor, gates: Tensor, weight: Tensor, bias: Tensor, *levels: Tensor) -> Tensor:
        """All maps channels first: copies of what the projection gave, 1x1 convolutions, and a copy back."""
        q, context, gates = (x.permute(0, 3, 1, 2).contiguous() for x in (q, context, gates))
        gathered = 0
        for i, level in enumerate(levels):
            context = F.gelu(F.conv2d(context, level, padding=level.shape[2] // 2, groups=channels))
            gathered = gathered + context * gates[:, i : i + 1]
        mean = F.gelu(context.mean(2, keepdim=True).mean(3, keepdim=True))
        gathered = gathered + mean * gates[:, len(levels) :]
        return (q * F.conv2d(gathered, weight[:, :, None, None], bias)).permute(0, 2, 3, 1).contiguous()

    maps = [torch.randn(batch, size, size, width) for width in (channels, channels, len(kernels) + 1)]
    weights = parameters((channels, channels), (channels,), *((channels, 1, kernel, kernel) for kernel in kernels))
    return Case(ours, official, maps, weights)


def large_kernel(batch: int, size: int, channels: int) -> Case:
    def official(
        x: Tensor,
        local_weight: Tensor,
        dilated_weight: Tensor,
        weight: Tensor,
        local_bias: Tensor,
        dilated_bias: Tensor,
        bias: Tensor,
    ) -> Tensor:
        """In PyTorch's layout for channels last, so that neither form has to copy."""
        x = x.permute(0, 3, 1, 2)
        around = F.conv2d(x, local_weight, local_bias, padding=2, groups=channels)
        around = F.conv2d(around, dilated_weight, dilated_bias, padding=9, dilation=3, groups=channels)
        return (x * F.conv2d(around, weight[:, :, None, None], bias)).permute(0, 2, 3, 1)

    x = torch.randn(batch, size, size, channels)
    weights = parameters((channels, 1, 5, 5), (channels, 1, 7, 7), (channels, channels), *[(channels,)] * 3)
    return Case(large_kernel_attention, official, [x], weights)


def dilated(batch: int, size: int, channels: int) -> Case:
    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return depthwise_conv(x, weight, bias, dilation=3)

    def torch_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=9, dilation=3, groups=channels)
        return out.permute(0, 2, 3, 1)

    x = torch.randn(batch, size, size, channels)
    return Case(ours, torch_conv, [], [x, *parameters((channels, 1, 7, 7), (channels,))])


CASES: dict[str, Callable[[int], Case]] = {
    'focal_modulate, FocalNet-T stage 1': lambda batch: focal(batch, 56, 96, 3, 5),
    'focal_modulate, FocalNet-T stage 3': lambda batch: focal(batch, 14, 384, 3, 5),
    'large_kernel_attention, VAN-B1 stage 1': lambda batch: large_kernel(batch, 56, 64),
    'large_kernel_attention, VAN-B1 stage 3': lambda batch: large_kernel(batch, 14, 320),
    'depthwise_conv 7x7, dilation 3, 56 x 56 x 64': lambda batch: dilated(batch, 56, 64),
}

SMALL: dict[str, Callable[[], Case]] = {
    'focal_modulate': lambda: focal(2, 6, 8, 3, 5),
    'large_kernel_attention': lambda: large_kernel(2, 8, 6),
    'depthwise_conv, dilated': lambda: dilated(2, 8, 6),
}
