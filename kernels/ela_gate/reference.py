"""Efficient local attention in plain PyTorch: the definition of the op, and what runs where a kernel does not.

Legend: B images, C channels, H x W map, L rows or columns.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attnzoo.kernels._cpu import by_hand, runs_by_hand
from attnzoo.kernels._gates import Incoming, Layout, Small, behind, finish


def ela_gate_reference(
    x: Tensor,
    residual: Tensor | None,
    activation: str | None,
    num_groups: int,
    eps: float,
    conv_h_weight: Tensor,
    norm_h_weight: Tensor | None,
    norm_h_bias: Tensor | None,
    conv_w_weight: Tensor,
    norm_w_weight: Tensor | None,
    norm_w_bias: Tensor | None,
) -> Tensor:
    """The op on arguments that `ela_gate` has checked."""
    if not torch.jit.is_scripting():
        weights = (conv_h_weight, norm_h_weight, norm_h_bias, conv_w_weight, norm_w_weight, norm_w_bias)
        if runs_by_hand(x, residual, *weights):
            now, later = behind(activation)
            return finish(
                by_hand(_forward, _backward, _plain, x, residual, now, num_groups, eps, *weights), None, later
            )
    return _plain(
        x, residual, activation, num_groups, eps, conv_h_weight, norm_h_weight, norm_h_bias, conv_w_weight,
        norm_w_weight, norm_w_bias,
    )  # fmt: skip


def _plain(
    x: Tensor,
    residual: Tensor | None,
    activation: str | None,
    num_groups: int,
    eps: float,
    conv_h_weight: Tensor,
    norm_h_weight: Tensor | None,
    norm_h_bias: Tensor | None,
    conv_w_weight: Tensor,
    norm_w_weight: Tensor | None,
    norm_w_bias: Tensor | None,
) -> Tensor:
    gate_h = _gate(x.mean(3), num_groups, eps, conv_h_weight, norm_h_weight, norm_h_bias)
    gate_w = _gate(x.mean(2), num_groups, eps, conv_w_weight, norm_w_weight, norm_w_bias)
    out = x * gate_h.to(x.dtype).unsqueeze(3) * gate_w.to(x.dtype).unsqueeze(2)
    return finish(out, residual, activation)


def _gate(
    strips: Tensor,
    num_groups: int,
    eps: float,
    conv_weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
) -> Tensor:
    """[B, C, L] -> [B, C, L]."""
    groups = strips.shape[1] // conv_weight.shape[1]
    scores = F.conv1d(strips.to(conv_weight.dtype), conv_weight, padding=conv_weight.shape[2] // 2, groups=groups)
    return F.group_norm(scores, num_groups, norm_weight, norm_bias, eps).sigmoid()


def _axes(layout: Layout) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """For the gate of rows, then for that of columns: the axis that it pools and those it sees, of a map as it lies."""
    return (layout.column, layout.channel, layout.row), (layout.row, layout.channel, layout.column)


def _forward(
    x: Tensor, residual: Tensor | None, activation: str | None, num_groups: int, eps: float, *weights: Any
) -> tuple[Tensor, tuple[Tensor, ...]]:
    layout = Layout(x)
    view, axes = layout.view(x), _axes(layout)
    strips = [[layout.pooled(layout.mean(view[part], axis), seen) for axis, *seen in axes] for part in layout.parts]
    kept = [torch.cat(several) for several in zip(*strips, strict=True)]
    gates = []
    for i, (_, *seen) in enumerate(axes):
        gates.append(layout.along(_gate(kept[i], num_groups, eps, *weights[3 * i : 3 * i + 3]), *seen))
    out = layout.empty(x)
    target = layout.view(out)
    for part in layout.parts:
        gate = layout.product_of_small([gate[part] for gate in gates], layout.spare(view[part]))
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
    num_groups: int,
    eps: float,
    *weights: Any,
) -> tuple[Tensor | None, ...]:
    layout = Layout(x)
    incoming = Incoming(layout, grad, kept.pop() if activation is not None else None, needs[1])
    view, axes = layout.view(x), _axes(layout)
    networks = [Small(_gate, kept[i], num_groups, eps, *weights[3 * i : 3 * i + 3]) for i in range(2)]
    gates = [layout.along(network.output, *seen) for network, (_, *seen) in zip(networks, axes, strict=True)]
    sums: list[list[Tensor]] = [[], []]
    for part in layout.parts:
        product = torch.mul(incoming(part), view[part], out=layout.spare(view[part]))
        for found, (axis, *seen), other in zip(sums, axes, reversed(gates), strict=True):
            found.append(layout.pooled(_sum_of_products(layout, product, other[part].to(x.dtype), axis), seen))
    d_weights: list[Any] = []
    d_means = []
    for network, found, (axis, *seen) in zip(networks, sums, axes, strict=True):
        d_strips, _, _, *d_network = network.gradients(torch.cat(found))
        d_weights += d_network
        d_means.append(layout.along(d_strips / view.shape[axis], *seen))
    if not needs[0]:
        return None, incoming.d_residual, None, None, None, *d_weights

    d_x = layout.empty(x)
    target = layout.view(d_x)
    for part in layout.parts:
        layout.sum_of_small([d_mean[part] for d_mean in d_means], target[part])
        gate = layout.product_of_small([gate[part] for gate in gates], layout.spare(view[part]))
        target[part].addcmul_(incoming(part), gate)
    return d_x, incoming.d_residual, None, None, None, *d_weights


def _sum_of_products(layout: Layout, x: Tensor, gate: Tensor, axis: int) -> Tensor:
    """Sums along an axis of a part of a map times a gate that lies along this axis."""
    if layout.channels_inside:
        return layout.sum(torch.mul(x, gate, out=layout.spare(x, 'second')), axis)
    lines, gate = x.flatten(0, 1), gate.flatten(0, 1).mT
    product = torch.bmm(lines, gate) if axis == layout.column else torch.bmm(gate, lines)
    return product.view(*x.shape[:2], -1)
