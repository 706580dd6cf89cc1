"""Focal modulation in plain PyTorch: the definition of the op, and what runs where a kernel does not."""

import torch
from torch import Tensor
from torch.nn import functional as F

from attnzoo.kernels._cpu import infers_by_hand, some_images_at_a_time
from attnzoo.kernels._dispatch import cast_for_autocast
from attnzoo.kernels.depthwise_conv.reference import depthwise_conv_reference


def focal_modulate_reference(
    x: Tensor, kernels: list[Tensor], weight: Tensor, bias: Tensor | None, normalize: bool
) -> Tensor:
    """The op on arguments that `focal_modulate` has checked."""
    if torch.jit.is_scripting():
        return _plain(x, kernels, weight, bias, normalize)
    else:
        return _unscripted(x, kernels, weight, bias, normalize)


def _unscripted(x: Tensor, kernels: list[Tensor], weight: Tensor, bias: Tensor | None, normalize: bool) -> Tensor:
    x, weight, bias, *kernels = cast_for_autocast(x, weight, bias, *kernels)
    if infers_by_hand(x, weight, bias, *kernels):
        return some_images_at_a_time(lambda part: _plain(part, kernels, weight, bias, normalize), x, weight.shape[0])
    return _plain(x, kernels, weight, bias, normalize)


def _plain(x: Tensor, kernels: list[Tensor], weight: Tensor, bias: Tensor | None, normalize: bool) -> Tensor:
    channels, levels = weight.shape[0], len(kernels)
    q, level, gates = x.split([channels, channels, levels + 1], dim=-1)
    context = level
    for i in range(levels):
        level = F.gelu(depthwise_conv_reference(level, kernels[i], None))
        gate = gates[..., i : i + 1]
        context = level * gate if i == 0 else torch.addcmul(context, level, gate)
    context = torch.addcmul(context, F.gelu(level.mean((1, 2), keepdim=True)), gates[..., levels:])
    if normalize:
        context = context / (levels + 1)
    return q * F.linear(context, weight, bias)
