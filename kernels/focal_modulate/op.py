"""`focal_modulate`: validation and dispatch."""

import torch
from torch import Tensor

from attnzoo.kernels._checks import check_devices, check_dtypes, check_map, check_shape
from attnzoo.kernels._fx import fx_leaf
from attnzoo.kernels.depthwise_conv.op import check_depthwise

from .reference import focal_modulate_reference


@fx_leaf
def focal_modulate(
    q: Tensor,
    context: Tensor,
    gates: Tensor,
    kernels: list[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    normalize: bool = False,
) -> Tensor:
    """Multiply the queries of a map by what is around them: the focal modulation of FocalNet (2203.11926).

    The context passes through depthwise convolutions, each followed by a GELU, so that it sees further at each level;
    the last level is its mean over the map, behind a GELU too. At each position a gate for each level weighs them, the
    sum is mixed by a linear layer, and the result multiplies the query. Cost grows linearly with the number of
    positions.

    Legend: B images, H x W map, C channels, L levels.

    Args:
        q: Queries, [B, H, W, C].
        context: [B, H, W, C].
        gates: One for each level, then one for the mean, [B, H, W, L + 1].
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
        _check(q, context, gates, kernels, weight, bias)
    return focal_modulate_reference(q, context, gates, kernels, weight, bias, normalize)


def _check(
    q: Tensor, context: Tensor, gates: Tensor, kernels: list[Tensor], weight: Tensor, bias: Tensor | None
) -> None:
    check_map('q', q)
    channels = q.shape[3]
    if not kernels:
        raise ValueError('kernels: expected one for each level, got none')
    check_shape('context', context, q.shape, 'batch, height, width, channels')
    check_shape('gates', gates, [*q.shape[:3], len(kernels) + 1], 'batch, height, width, levels + 1')
    check_dtypes({'q': q, 'context': context, 'gates': gates})
    for i, kernel in enumerate(kernels):
        check_depthwise(context, kernel, None, 1, f'kernels[{i}]', map_name='context')
    check_shape('weight', weight, [channels, channels], 'channels, channels')
    check_shape('bias', bias, [channels], 'channels')
    check_devices('q', q, {'context': context, 'gates': gates, 'weight': weight, 'bias': bias})
