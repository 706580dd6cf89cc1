"""Triplet attention in plain PyTorch: the definition of the op, and what runs where a kernel does not.

Legend: B images, C channels, H x W map.
"""

from typing import Any

import torch
from torch import Tensor

from attnzoo.kernels._cpu import by_hand, runs_by_hand
from attnzoo.kernels._dispatch import cast_for_autocast
from attnzoo.kernels._gates import Incoming, Layout, Small, behind, finish, gate_map
from attnzoo.kernels._spatial_gate import Statistics, spatial_gate


def triplet_gate_reference(
    x: Tensor,
    residual: Tensor | None,
    activation: str | None,
    conv_weights: list[Tensor],
    norm_weights: list[Tensor] | None,
    norm_biases: list[Tensor] | None,
    running_means: list[Tensor] | None,
    running_vars: list[Tensor] | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """The op on arguments that `triplet_gate` has checked."""
    if torch.jit.is_scripting():
        return _plain(
            x, residual, activation, conv_weights, norm_weights, norm_biases, running_means, running_vars, training,
            momentum, eps,
        )  # fmt: skip
    else:
        return _unscripted(
            x, residual, activation, conv_weights, norm_weights, norm_biases, running_means, running_vars, training,
            momentum, eps,
        )  # fmt: skip


def _plain(
    x: Tensor,
    residual: Tensor | None,
    activation: str | None,
    conv_weights: list[Tensor],
    norm_weights: list[Tensor] | None,
    norm_biases: list[Tensor] | None,
    running_means: list[Tensor] | None,
    running_vars: list[Tensor] | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    gates: list[Tensor] = []
    for i, conv_weight in enumerate(conv_weights):
        axis = (2, 3, 1)[i]
        pooled = torch.stack([x.amax(axis), x.mean(axis)], 1)
        if i == 1:
            pooled = pooled.transpose(2, 3)  # its gate sees rows first, then channels
        gate = spatial_gate(
            pooled,
            conv_weight,
            None if norm_weights is None else norm_weights[i],
            None if norm_biases is None else norm_biases[i],
            None if running_means is None else running_means[i],
            None if running_vars is None else running_vars[i],
            training,
            momentum,
            eps,
        ).squeeze(1)
        if i == 1:
            gate = gate.transpose(1, 2)
        gates.append(gate.to(x.dtype).unsqueeze(axis))
    gate = gates[0] + gates[1]
    if len(gates) == 3:
        gate = gate + gates[2]
    return gate_map(x, gate / len(gates), residual, activation)


def _unscripted(
    x: Tensor,
    residual: Tensor | None,
    activation: str | None,
    conv_weights: list[Tensor],
    norm_weights: list[Tensor] | None,
    norm_biases: list[Tensor] | None,
    running_means: list[Tensor] | None,
    running_vars: list[Tensor] | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    lists = conv_weights, norm_weights, norm_biases, running_means, running_vars
    if not runs_by_hand(x, residual, *(tensor for tensors in lists[:3] if tensors is not None for tensor in tensors)):
        return _plain(x, residual, activation, *lists, training, momentum, eps)
    weights: list[Tensor | None] = []
    statistics = []
    for i, conv_weight in enumerate(conv_weights):
        norm_weight, norm_bias, mean, var = (None if tensors is None else tensors[i] for tensors in lists[1:])
        weights += [*cast_for_autocast(conv_weight), norm_weight, norm_bias]
        statistics.append(Statistics(mean, var, training, momentum, eps).settled())
    now, later = behind(activation)
    return finish(by_hand(_forward, _backward, _again, x, residual, now, statistics, *weights), None, later)


def _again(
    x: Tensor, residual: Tensor | None, activation: str | None, statistics: list[Statistics], *weights: Any
) -> Tensor:
    """The op in PyTorch's own operations, on the arguments of the passes by hand."""
    again = [one.again() for one in statistics]
    lists = weights[0::3], weights[1::3], weights[2::3], [one.mean for one in again], [one.var for one in again]
    given: list[Any] = [None if tensors[0] is None else list(tensors) for tensors in lists]
    convs, norm_weights, norm_biases, means, variances = given
    _, _, training, momentum, eps = again[0]
    return _plain(x, residual, activation, convs, norm_weights, norm_biases, means, variances, training, momentum, eps)


def _axes(layout: Layout, gates: int) -> list[tuple[int, tuple[int, int]]]:
    """For each gate the axis that it pools and those that it sees, in its order, of a map as it lies."""
    row, column, channel = layout.row, layout.column, layout.channel
    return [(row, (channel, column)), (column, (row, channel)), (channel, (row, column))][:gates]


def _forward(
    x: Tensor, residual: Tensor | None, activation: str | None, statistics: list[Statistics], *weights: Any
) -> tuple[Tensor, tuple[Tensor, ...]]:
    layout = Layout(x)
    axes, view = _axes(layout, len(statistics)), layout.view(x)
    kept = [x.new_empty(x.shape[0], 2, view.shape[a], view.shape[b]) for _, (a, b) in axes]
    for part in layout.parts:
        for pooled, (axis, seen) in zip(kept, axes, strict=True):
            pooled[part, 0] = layout.pooled(layout.maximum(view[part], axis), seen)
            pooled[part, 1] = layout.pooled(layout.mean(view[part], axis), seen)
    gates = []
    for i, (_, seen) in enumerate(axes):
        gate = statistics[i].gate(kept[i], *weights[3 * i : 3 * i + 3])
        gates.append(layout.along(gate.squeeze(1) / len(axes), *seen))
    out = layout.empty(x)
    target = layout.view(out)
    for part in layout.parts:
        gate = layout.sum_of_small([gate[part] for gate in gates], layout.spare(view[part]))
        layout.finish(torch.mul(view[part], gate, out=target[part]), part, residual, activation)
    if activation is not None:
        kept.append(out)
    return out, tuple(kept)


def _backward(
    grad: Tensor,
    needs: list[bool],
    kept: list[Tensor],
    x: Tensor,
    residual: Tensor | None,
    activation: str | None,
    statistics: list[Statistics],
    *weights: Any,
) -> tuple[Tensor | None, ...]:
    layout = Layout(x)
    incoming = Incoming(layout, grad, kept.pop() if activation is not None else None, needs[1])
    axes, view = _axes(layout, len(statistics)), layout.view(x)
    sums: list[list[Tensor]] = [[] for _ in axes]
    for part in layout.parts:
        product = torch.mul(incoming(part), view[part], out=layout.spare(view[part]))
        for found, (axis, seen) in zip(sums, axes, strict=True):
            found.append(layout.pooled(layout.sum(product, axis), seen))

    d_weights: list[Any] = []
    gates, maxima, d_maxima, d_means = [], [], [], []
    for i, (axis, seen) in enumerate(axes):
        network = Small(statistics[i].again().gate, kept[i], *weights[3 * i : 3 * i + 3])
        d_pooled, *d_network = network.gradients(torch.cat(sums[i]).unsqueeze(1) / len(axes))
        d_weights += d_network
        gates.append(layout.along(network.output.squeeze(1) / len(axes), *seen))
        maxima.append(layout.along(kept[i][:, 0], *seen))
        d_maxima.append(layout.along(d_pooled[:, 0], *seen))
        d_means.append(layout.along(d_pooled[:, 1] / view.shape[axis], *seen))
    if not needs[0]:
        return None, incoming.d_residual, None, None, *d_weights

    d_x = layout.empty(x)
    target = layout.view(d_x)
    for part in layout.parts:
        values, d_part = view[part], target[part]
        layout.sum_of_small([d_mean[part] for d_mean in d_means], d_part)
        gate = layout.sum_of_small([gate[part] for gate in gates], layout.spare(values))
        d_part.addcmul_(incoming(part), gate)
        for (axis, _), maximum, d_maximum in zip(axes, maxima, d_maxima, strict=True):
            layout.add_maximum_gradient(d_part, values, maximum[part], d_maximum[part], (axis,))
    return d_x, incoming.d_residual, None, None, *d_weights
