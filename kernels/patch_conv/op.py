"""`patch_conv`: validation and dispatch."""

import torch
from torch import Tensor

from attnzoo.kernels._checks import check_devices, check_map, check_shape
from attnzoo.kernels._fx import fx_leaf

from .reference import patch_conv_reference


@fx_leaf
def patch_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 4) -> Tensor:
    """Convolve an image with a kernel that is larger than the stride by an even number: patches that overlap.

    The image is padded with zeros, so that the patches of all kernels have the same centres. Cross-scale embeddings
    (CrossFormer, 2108.00154) use it.

    Legend: B images of C channels, H x W pixels, kernel of k x k pixels, D channels of the output.

    Args:
        x: [B, C, H, W], H and W no less than the stride.
        weight: [D, C, k, k], as `nn.Conv2d` has it.
        bias: [D].
        stride: Distance of the patches.

    Returns:
        [B, D, H // stride, W // stride]. All inputs get gradients.

    Raises:
        ValueError: An argument has the wrong shape, dtype, device or value; the message names it.
    """
    if not torch.jit.is_scripting():
        _check(x, weight, bias, stride)
    return patch_conv_reference(x, weight, bias, stride)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> None:
    if stride < 1:
        raise ValueError(f'stride: expected at least 1, got {stride}')
    check_map('x', x, channels_first=True)
    if x.shape[2] < stride or x.shape[3] < stride:
        raise ValueError(
            f'x: expected at least {stride} x {stride} pixels, the stride, got {x.shape[2]} x {x.shape[3]}'
        )
    if weight.ndim != 4 or weight.shape[1] != x.shape[1] or weight.shape[2] != weight.shape[3]:
        raise ValueError(
            f'weight: expected [channels out, channels, side, side] with the {x.shape[1]} channels of x, '
            f'got shape {tuple(weight.shape)}'
        )
    if weight.shape[2] < stride or (weight.shape[2] - stride) % 2:
        raise ValueError(
            f'weight: expected a kernel of {stride} (the stride) plus an even number, got {weight.shape[2]}'
        )
    check_shape('bias', bias, [weight.shape[0]], 'channels out')
    check_devices('x', x, {'weight': weight, 'bias': bias})
