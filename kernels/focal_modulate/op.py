"""`focal_modulate`: validation and dispatch."""

import torch
from torch import Tensor

from attnzoo.kernels._checks import check_devices, check_map, check_shape
from attnzoo.kernels._fx import fx_leaf
from attnzoo.kernels.depthwise_conv.op import check_depthwise

from .reference import focal_modulate_reference


@fx_leaf
def focal_modulate(
    x: Tensor, kernels: list[Tensor], weight: Tensor, bias: Tensor | None = None, normalize: bool = False
) -> Tensor:
    """Multiply the queries of a map by what is around them: the focal modulation of FocalNet (2203.11926).

    The context passes through depthwise convolutions, each followed by a GELU, so that it sees further at each level;
    the last level is its mean over the map, behind a GELU too. At each position a gate for each level weighs them, the
    sum is mixed by a linear layer, and the result multiplies the query. Cost grows linearly with the number of
    positions.

    Legend: B images, H x W map, C channels, L levels.

    Args:
        x: Packed queries, context and gates, [B, H, W, 2C + L + 1]: C queries, C of context, a gate for each level and
            one for the mean.
        kernels: L depthwise kernels without bias, each [C, 1, kh, kw] with odd kh and kw.
        weight: Of the linear layer on the sum, [C, C] as `nn.Linear` has it.
        bias: Of the linear layer, [C].
        normalize: Divide the sum by L + 1.

    Returns:
        [B, H, W, C]. All inputs get gradients.

    Raises:
        ValueError: An argument has the wrong shape, dtype or device; the message names it.
    """
    if not torch.jit.is_scripting():
        _check(x, kernels, weight, bias)
    return focal_modulate_reference(x, kernels, weight, bias, normalize)


def _check(x: Tensor, kernels: list[Tensor], weight: Tensor, bias: Tensor | None) -> None:
    check_map('x', x, holds='2 * channels + levels + 1')
    levels = len(kernels)
    channels = (x.shape[3] - levels - 1) // 2
    if levels == 0:
        raise ValueError('kernels: expected one for each level, got none')
    if channels < 1 or x.shape[3] != 2 * channels + levels + 1:
        raise ValueError(
            f'x: expected 2 * channels + {levels + 1} for the {levels} levels of kernels, got {x.shape[3]}'
        )
    for i, kernel in enumerate(kernels):
        check_depthwise(x[..., :channels], kernel, None, 1, f'kernels[{i}]')
    check_shape('weight', weight, [channels, channels], 'channels, channels')
    check_shape('bias', bias, [channels], 'channels')
    check_devices('x', x, {'weight': weight, 'bias': bias})
