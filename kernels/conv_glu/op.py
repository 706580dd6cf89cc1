"""`conv_glu`: validation and dispatch."""

import torch
from torch import Tensor

from attnzoo.kernels._checks import check_devices, check_dropout, check_map, check_odd, check_shape
from attnzoo.kernels._fx import fx_leaf

from .reference import conv_glu_reference


@fx_leaf
def conv_glu(
    x: Tensor,
    fc1_weight: Tensor,
    conv_weight: Tensor,
    fc2_weight: Tensor,
    fc1_bias: Tensor | None = None,
    conv_bias: Tensor | None = None,
    fc2_bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Convolutional gated linear unit: an MLP whose gate sees the neighbours of each position.

    gate, value = fc1(x); out = fc2(GELU(conv(gate)) * value), with a depthwise convolution and the exact GELU. Paper:
    TransNeXt (2311.17132).

    Legend: B images, H x W map, C channels, D hidden channels, Co channels of the output, kernel of kh x kw.

    Args:
        x: [B, H, W, C].
        fc1_weight: [2D, C]: the gate's rows, then the value's.
        conv_weight: [D, 1, kh, kw], kh and kw odd.
        fc2_weight: [Co, D].
        fc1_bias: [2D].
        conv_bias: [D].
        fc2_bias: [Co].
        dropout: Rate at which hidden values are dropped behind the gate; with it, training keeps all of them.

    Returns:
        [B, H, W, Co]. All inputs get gradients.

    Raises:
        ValueError: An argument has the wrong shape, dtype, device or value; the message names it.
    """
    if not torch.jit.is_scripting():
        _check(x, fc1_weight, conv_weight, fc2_weight, fc1_bias, conv_bias, fc2_bias)
        check_dropout(dropout)
    return conv_glu_reference(x, fc1_weight, conv_weight, fc2_weight, fc1_bias, conv_bias, fc2_bias, dropout)


def _check(
    x: Tensor,
    fc1_weight: Tensor,
    conv_weight: Tensor,
    fc2_weight: Tensor,
    fc1_bias: Tensor | None,
    conv_bias: Tensor | None,
    fc2_bias: Tensor | None,
) -> None:
    check_map('x', x)
    if fc1_weight.ndim != 2 or fc1_weight.shape[1] != x.shape[3] or fc1_weight.shape[0] % 2:
        raise ValueError(
            f'fc1_weight: expected [2 * hidden, channels] with the {x.shape[3]} channels of x, '
            f'got shape {tuple(fc1_weight.shape)}'
        )
    hidden = fc1_weight.shape[0] // 2
    if conv_weight.ndim != 4 or tuple(conv_weight.shape[:2]) != (hidden, 1):
        raise ValueError(
            f'conv_weight: expected [hidden, 1, height, width] with the {hidden} hidden channels of fc1_weight, '
            f'got shape {tuple(conv_weight.shape)}'
        )
    check_odd('conv_weight', conv_weight.shape[2:])
    if fc2_weight.ndim != 2 or fc2_weight.shape[1] != hidden:
        raise ValueError(
            f'fc2_weight: expected [channels, hidden] with the {hidden} hidden channels of fc1_weight, '
            f'got shape {tuple(fc2_weight.shape)}'
        )
    check_shape('fc1_bias', fc1_bias, [2 * hidden], '2 * hidden')
    check_shape('conv_bias', conv_bias, [hidden], 'hidden')
    check_shape('fc2_bias', fc2_bias, [fc2_weight.shape[0]], 'channels')
    weights = {'fc1_weight': fc1_weight, 'conv_weight': conv_weight, 'fc2_weight': fc2_weight}
    check_devices('x', x, {**weights, 'fc1_bias': fc1_bias, 'conv_bias': conv_bias, 'fc2_bias': fc2_bias})
