"""`depthwise_conv`: validation and dispatch."""

import torch
from torch import Tensor

from attnzoo.kernels._checks import check_devices, check_map, check_odd, check_shape
from attnzoo.kernels._fx import fx_leaf

from .reference import depthwise_conv_reference


@fx_leaf
def depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: bool = False, dilation: int = 1
) -> Tensor:
    """Convolve each channel of a channels-last map with a kernel of its own, of odd size, with stride 1.

    The map is padded with zeros, so that it keeps its size. Position encodings (CPVT, 2102.10882; DaViT), local
    enhancement (LePE, 2107.00652; BiFormer), convolutional MLPs and, with dilation, VAN (2202.09741) use it.

    Legend: B images, H x W map, C channels, kernel of kh x kw.

    Args:
        x: [B, H, W, C].
        weight: [C, 1, kh, kw], as `nn.Conv2d` with `groups=C` has it; kh and kw are odd.
        bias: [C].
        residual: Add x to the result.
        dilation: Distance on the map of what is adjacent in the kernel.

    Returns:
        [B, H, W, C]. All inputs get gradients.

    Raises:
        ValueError: An argument has the wrong shape, dtype, device or value; the message names it.
    """
    if not torch.jit.is_scripting():
        check_map('x', x)
        check_depthwise(x, weight, bias, dilation)
    return depthwise_conv_reference(x, weight, bias, residual, dilation)


def check_depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: int,
    weight_name: str = 'weight',
    bias_name: str = 'bias',
    map_name: str = 'x',
) -> None:
    """Raises a ValueError unless these are the weights of a depthwise convolution of the map x [B, H, W, C]."""
    channels = x.shape[3]
    if weight.ndim != 4 or tuple(weight.shape[:2]) != (channels, 1):
        raise ValueError(
            f'{weight_name}: expected [channels, 1, height, width] with the {channels} channels of {map_name}, '
            f'got shape {tuple(weight.shape)}'
        )
    check_odd(weight_name, weight.shape[2:])
    check_shape(bias_name, bias, [channels], 'channels')
    check_devices(map_name, x, {weight_name: weight, bias_name: bias})
    if dilation < 1:
        raise ValueError(f'dilation: expected at least 1, got {dilation}')
