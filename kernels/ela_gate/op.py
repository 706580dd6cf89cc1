"""`ela_gate`: validation and dispatch."""

import torch
from torch import Tensor

from attnzoo.kernels._checks import check_devices, check_map, check_shape
from attnzoo.kernels._fx import fx_leaf
from attnzoo.kernels._gates import check_gated

from .reference import ela_gate_reference


@fx_leaf
def ela_gate(
    x: Tensor,
    conv_h_weight: Tensor,
    conv_w_weight: Tensor,
    num_groups: int,
    norm_h_weight: Tensor | None = None,
    norm_w_weight: Tensor | None = None,
    norm_h_bias: Tensor | None = None,
    norm_w_bias: Tensor | None = None,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """Efficient local attention (ELA, 2403.01123): gates of rows and of columns from strips of each channel.

        gate_h = sigmoid(norm_h(conv_h(mean of x over columns)))    [B, C, H]
        gate_w = sigmoid(norm_w(conv_w(mean of x over rows)))       [B, C, W]

    with 1-D convolutions along the strips, padded with zeros, and group norms. The same weights may serve both.

    Legend: B images, C channels, H x W map, kernels of k positions, G groups of channels of a convolution.

    Args:
        x: [B, C, H, W], of any memory format.
        conv_h_weight: [C, C / G, k], k odd.
        conv_w_weight: [C, C / G, k], k odd; G and k may be others.
        num_groups: Groups of channels of the norms.
        norm_h_weight: [C].
        norm_w_weight: [C].
        norm_h_bias: [C].
        norm_w_bias: [C].
        eps: Added to variances.
        residual: [B, C, H, W], added behind the gates.
        activation: What comes last, such as 'relu' (see `channel_gate`); None for nothing.

    Returns:
        activation(x * gate_h * gate_w + residual), [B, C, H, W], in the dtype and memory format of x. All inputs get
        gradients.

    Raises:
        ValueError: An argument has the wrong shape, dtype, device or value; the message names it.
    """
    if not torch.jit.is_scripting():
        _check(
            x,
            num_groups,
            {'conv_h_weight': conv_h_weight, 'conv_w_weight': conv_w_weight},
            {
                'norm_h_weight': norm_h_weight,
                'norm_w_weight': norm_w_weight,
                'norm_h_bias': norm_h_bias,
                'norm_w_bias': norm_w_bias,
            },
        )
        check_gated(x, residual, activation)
    return ela_gate_reference(
        x, residual, activation, num_groups, eps, conv_h_weight, norm_h_weight, norm_h_bias, conv_w_weight,
        norm_w_weight, norm_w_bias,
    )  # fmt: skip


def _check(x: Tensor, num_groups: int, kernels: dict[str, Tensor], vectors: dict[str, Tensor | None]) -> None:
    check_map('x', x, channels_first=True)
    channels = x.shape[1]
    for name, weight in kernels.items():
        if weight.ndim != 3 or weight.shape[0] != channels or weight.shape[1] == 0 or channels % weight.shape[1]:
            raise ValueError(
                f'{name}: expected [channels, channels / groups, k] with the {channels} channels of x, '
                f'got shape {tuple(weight.shape)}'
            )
        if weight.shape[2] % 2 == 0:
            raise ValueError(f'{name}: expected an odd kernel, got shape {tuple(weight.shape)}')
    if num_groups < 1 or channels % num_groups:
        raise ValueError(f'num_groups: expected a divisor of the {channels} channels of x, got {num_groups}')
    for name, vector in vectors.items():
        check_shape(name, vector, [channels], 'channels')
    check_devices('x', x, {**kernels, **vectors})
