"""`channel_gate`: validation and dispatch."""

import torch
from torch import Tensor

from attnzoo.kernels._checks import check_devices, check_map
from attnzoo.kernels._fx import fx_leaf
from attnzoo.kernels._gates import check_activation, check_gated, check_mlp

from .reference import channel_gate_reference


@fx_leaf
def channel_gate(
    x: Tensor,
    fc1_weight: Tensor | None = None,
    fc2_weight: Tensor | None = None,
    fc1_bias: Tensor | None = None,
    fc2_bias: Tensor | None = None,
    conv_weight: Tensor | None = None,
    filters: Tensor | None = None,
    add_max: bool = False,
    act: str = 'relu',
    gate: str = 'sigmoid',
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """Multiply each channel of a map by a gate, which a small network makes of all pooled channels.

    x * gate(fc2(act(fc1(pool(x))))) is squeeze and excitation (SE, 1709.01507), with means of channels, or frequency
    channel attention (FcaNet, 2012.11879), with sums of channels under `filters`. x * gate(conv(pool(x))), with a
    convolution along the channels, is efficient channel attention (ECA, 1910.03151).

    Legend: B images, C channels, H x W map, D hidden channels, a line of k channels under the convolution.

    Args:
        x: [B, C, H, W], of any memory format.
        fc1_weight: [D, C].
        fc2_weight: [C, D].
        fc1_bias: [D].
        fc2_bias: [C].
        conv_weight: [1, 1, k], k odd: in place of fc1 and fc2.
        filters: Weights of positions, [C, h, w]; a channel is pooled to the sum of its values times its filter, where
            maps of another size are first averaged to h x w as by `adaptive_avg_pool2d`. None: the mean.
        add_max: Take the mean of what is pooled so and of the channel's maximum (timm's variant). Equal maxima share
            their gradient.
        act: Activation behind fc1, one of 'relu', 'relu6', 'silu', 'gelu', 'gelu_tanh', 'hard_swish', 'tanh',
            'sigmoid', 'hard_sigmoid'.
        gate: What makes gates of scores, one of the same.
        residual: [B, C, H, W], added behind the gate.
        activation: What comes last, one of the same; None for nothing.

    Returns:
        activation(x * gates + residual), [B, C, H, W], in the dtype and memory format of x. All inputs get gradients.

    Raises:
        ValueError: An argument has the wrong shape, dtype, device or value; the message names it.
    """
    if not torch.jit.is_scripting():
        _check(x, fc1_weight, fc2_weight, fc1_bias, fc2_bias, conv_weight, filters)
        check_activation('act', act)
        check_activation('gate', gate)
        check_gated(x, residual, activation)
    return channel_gate_reference(
        x, residual, activation, filters, add_max, fc1_weight, fc2_weight, fc1_bias, fc2_bias, conv_weight, act, gate
    )


def _check(
    x: Tensor,
    fc1_weight: Tensor | None,
    fc2_weight: Tensor | None,
    fc1_bias: Tensor | None,
    fc2_bias: Tensor | None,
    conv_weight: Tensor | None,
    filters: Tensor | None,
) -> None:
    check_map('x', x, channels_first=True)
    channels = x.shape[1]
    layers = {'fc1_weight': fc1_weight, 'fc2_weight': fc2_weight, 'fc1_bias': fc1_bias, 'fc2_bias': fc2_bias}
    if conv_weight is not None:
        given = [name for name, value in layers.items() if value is not None]
        if given:
            raise ValueError(f'conv_weight: expected it or {" and ".join(given)}, got both')
        if conv_weight.ndim != 3 or tuple(conv_weight.shape[:2]) != (1, 1) or conv_weight.shape[2] % 2 == 0:
            raise ValueError(f'conv_weight: expected [1, 1, k] with an odd k, got shape {tuple(conv_weight.shape)}')
    else:
        check_mlp(channels, fc1_weight, fc2_weight, fc1_bias, fc2_bias)
    if filters is not None and (filters.ndim != 3 or filters.shape[0] != channels or 0 in filters.shape):
        raise ValueError(
            f'filters: expected [channels, height, width] with the {channels} channels of x, '
            f'got shape {tuple(filters.shape)}'
        )
    check_devices('x', x, {**layers, 'conv_weight': conv_weight, 'filters': filters})
