"""`conv_glu`: validation and dispatch."""

import torch
from torch import Tensor

from attnzoo.kernels._dispatch import check_dropout
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
    if x.ndim != 4:
        raise ValueError(f'x: expected a map [batch, height, width, channels], got shape {tuple(x.shape)}')
    if not x.is_floating_point():
        raise ValueError(f'x: expected a floating-point dtype, got {x.dtype}')
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
    if conv_weight.shape[2] % 2 == 0 or conv_weight.shape[3] % 2 == 0:
        raise ValueError(f'conv_weight: expected a kernel of odd height and width, got {tuple(conv_weight.shape[2:])}')
    if fc2_weight.ndim != 2 or fc2_weight.shape[1] != hidden:
        raise ValueError(
            f'fc2_weight: expected [channels, hidden] with the {hidden} hidden channels of fc1_weight, '
            f'got shape {tuple(fc2_weight.shape)}'
        )
    sizes = {'fc1_bias': (fc1_bias, 2 * hidden), 'conv_bias': (conv_bias, hidden)}
    for name, (bias, size) in {**sizes, 'fc2_bias': (fc2_bias, fc2_weight.shape[0])}.items():
        if bias is not None and tuple(bias.shape) != (size,):
            raise ValueError(f'{name}: expected shape ({size},), got {tuple(bias.shape)}')
    weights = {'fc1_weight': fc1_weight, 'conv_weight': conv_weight, 'fc2_weight': fc2_weight}
    for name, other in {**weights, 'fc1_bias': fc1_bias, 'conv_bias': conv_bias, 'fc2_bias': fc2_bias}.items():
        if other is not None and other.device != x.device:
            raise ValueError(f'{name}: expected the device of x, {x.device}, got {other.device}')
