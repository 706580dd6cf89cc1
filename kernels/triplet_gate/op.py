"""`triplet_gate`: validation and dispatch."""

import torch
from torch import Tensor

from attnzoo.kernels._checks import check_map
from attnzoo.kernels._fx import fx_leaf
from attnzoo.kernels._gates import check_gated
from attnzoo.kernels._spatial_gate import check_spatial_gate

from .reference import triplet_gate_reference


@fx_leaf
def triplet_gate(
    x: Tensor,
    conv_weights: list[Tensor],
    norm_weights: list[Tensor] | None = None,
    norm_biases: list[Tensor] | None = None,
    running_means: list[Tensor] | None = None,
    running_vars: list[Tensor] | None = None,
    training: bool = False,
    momentum: float = 0.01,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """Triplet attention (2010.03045): the mean of a map under three gates, each of which sees two of its axes.

    A gate is sigmoid(norm(conv(maximum and mean of x over an axis))), and holds along that axis; `norm` is a batch norm
    of the one map that the convolution gives. The first gate pools rows and sees [C, W], the second pools columns and
    sees [H, C], the third pools channels and sees [H, W].

    Legend: B images, C channels, H x W map, kernels of kh x kw.

    Args:
        x: [B, C, H, W], of any memory format.
        conv_weights: For each gate [1, 2, kh, kw], kh and kw odd: for the maximum, then the mean. With two of them
            there is no third gate.
        norm_weights: For each gate [1].
        norm_biases: For each gate [1].
        running_means: For each gate [1]. Without them and `running_vars` the batch's own statistics normalise.
        running_vars: For each gate [1].
        training: Normalise by the batch's statistics, and update the running ones in place.
        momentum: Share of the batch in an update.
        eps: Added to variances.
        residual: [B, C, H, W], added behind the gates.
        activation: What comes last, such as 'relu' (see `channel_gate`); None for nothing.

    Returns:
        activation(x * (sum of gates) / (number of gates) + residual), [B, C, H, W], in the dtype and memory format of
        x. All inputs but the running statistics get gradients. Equal maxima share theirs, where the published code
        gives it to the first.

    Raises:
        ValueError: An argument has the wrong shape, dtype, device or value; the message names it.
    """
    if not torch.jit.is_scripting():
        _check(x, conv_weights, norm_weights, norm_biases, running_means, running_vars)
        check_gated(x, residual, activation)
    return triplet_gate_reference(
        x, residual, activation, conv_weights, norm_weights, norm_biases, running_means, running_vars, training,
        momentum, eps,
    )  # fmt: skip


def _check(
    x: Tensor,
    conv_weights: list[Tensor],
    norm_weights: list[Tensor] | None,
    norm_biases: list[Tensor] | None,
    running_means: list[Tensor] | None,
    running_vars: list[Tensor] | None,
) -> None:
    check_map('x', x, channels_first=True)
    gates = len(conv_weights)
    if gates not in (2, 3):
        raise ValueError(f'conv_weights: expected three gates or, without that of positions, two, got {gates}')
    lists = {
        'norm_weights': norm_weights,
        'norm_biases': norm_biases,
        'running_means': running_means,
        'running_vars': running_vars,
    }
    for name, tensors in lists.items():
        if tensors is not None and len(tensors) != gates:
            raise ValueError(f'{name}: expected one for each of the {gates} of conv_weights, got {len(tensors)}')
    for i in range(gates):
        gate: dict[str, Tensor | None] = {f'conv_weights[{i}]': conv_weights[i]}
        for name, tensors in lists.items():
            gate[f'{name}[{i}]'] = None if tensors is None else tensors[i]
        check_spatial_gate(x, gate)
