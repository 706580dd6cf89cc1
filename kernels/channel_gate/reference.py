"""Gates of channels in plain PyTorch: the definition of the op, and what runs where a kernel does not.

Legend: B images, C channels, H x W map.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attnzoo.kernels._cpu import by_hand, runs_by_hand
from attnzoo.kernels._gates import (
    Incoming,
    Layout,
    Small,
    activate,
    behind,
    finish,
    gate_map,
)


def channel_gate_reference(
    x: Tensor,
    residual: Tensor | None,
    activation: str | None,
    filters: Tensor | None,
    add_max: bool,
    fc1_weight: Tensor | None,
    fc2_weight: Tensor | None,
    fc1_bias: Tensor | None,
    fc2_bias: Tensor | None,
    conv_weight: Tensor | None,
    act: str,
    gate: str,
) -> Tensor:
    """The op on arguments that `channel_gate` has checked."""
    if not torch.jit.is_scripting():
        network = (fc1_weight, fc2_weight, fc1_bias, fc2_bias, conv_weight)
        fixed = filters is None or not filters.requires_grad
        if fixed and runs_by_hand(x, residual, filters, *network):
            now, later = behind(activation)
            out = by_hand(_forward, _backward, _plain, x, residual, now, filters, add_max, *network, act, gate)
            return finish(out, None, later)
    return _plain(
        x, residual, activation, filters, add_max, fc1_weight, fc2_weight, fc1_bias, fc2_bias, conv_weight, act, gate
    )


def _plain(
    x: Tensor,
    residual: Tensor | None,
    activation: str | None,
    filters: Tensor | None,
    add_max: bool,
    fc1_weight: Tensor | None,
    fc2_weight: Tensor | None,
    fc1_bias: Tensor | None,
    fc2_bias: Tensor | None,
    conv_weight: Tensor | None,
    act: str,
    gate: str,
) -> Tensor:
    if filters is None:
        pooled = x.mean((2, 3))
    else:
        pooled = (x * over_map(filters.to(x.dtype), x.shape[2], x.shape[3])).sum((2, 3))
    maximum = x.amax((2, 3)) if add_max else None
    gates = _gates(_together(pooled, maximum), fc1_weight, fc2_weight, fc1_bias, fc2_bias, conv_weight, act, gate)
    return gate_map(x, gates.unsqueeze(2).unsqueeze(3), residual, activation)


def over_map(filters: Tensor, height: int, width: int) -> Tensor:
    """Filters [C, h, w] for maps that are first averaged to h x w, as filters [C, H, W] for the maps themselves.

    The averages are those of PyTorch's `adaptive_avg_pool2d`.
    """
    if (height, width) == (filters.shape[1], filters.shape[2]):
        return filters
    rows = _averages(filters.shape[1], height, filters)
    columns = _averages(filters.shape[2], width, filters)
    return rows.t() @ (filters @ columns)


def _averages(size: int, length: int, like: Tensor) -> Tensor:
    """The matrix [size, length] that averages a line of that length to a size."""
    place = torch.arange(size, device=like.device).unsqueeze(1)
    start, end = place * length // size, ((place + 1) * length + size - 1) // size
    position = torch.arange(length, device=like.device)
    inside = ((position >= start) & (position < end)).to(like.dtype)
    return inside / (end - start).to(like.dtype)


def _gates(
    pooled: Tensor,
    fc1_weight: Tensor | None,
    fc2_weight: Tensor | None,
    fc1_bias: Tensor | None,
    fc2_bias: Tensor | None,
    conv_weight: Tensor | None,
    act: str,
    gate: str,
) -> Tensor:
    """The gates [B, C] of pooled channels [B, C]."""
    if conv_weight is not None:
        line = pooled.to(conv_weight.dtype).unsqueeze(1)
        scores = F.conv1d(line, conv_weight, padding=conv_weight.shape[2] // 2).squeeze(1)
    else:
        assert fc1_weight is not None and fc2_weight is not None
        hidden = activate(F.linear(pooled.to(fc1_weight.dtype), fc1_weight, fc1_bias), act)
        scores = F.linear(hidden, fc2_weight, fc2_bias)
    return activate(scores, gate)


def _forward(
    x: Tensor, residual: Tensor | None, activation: str | None, filters: Tensor | None, add_max: bool, *network: Any
) -> tuple[Tensor, tuple[Tensor, ...]]:
    layout = Layout(x)
    view = layout.view(x)
    if filters is None:
        kept = [layout.means(view)]
    else:
        fixed = _laid_out(filters, layout, x)
        kept = [torch.cat([layout.sum_of_products(view[part], fixed) for part in layout.parts])]
        layout.forget()
    if add_max:
        kept.append(view.amax(layout.positions))
    gates = _gates(_together(*kept), *network).to(x.dtype)
    out = layout.gated(x, layout.along(gates, layout.channel), residual, activation)
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
    filters: Tensor | None,
    add_max: bool,
    *network: Any,
) -> tuple[Tensor | None, ...]:
    layout = Layout(x)
    incoming = Incoming(layout, grad, kept.pop() if activation is not None else None, needs[1])
    small = Small(_gates, _together(*kept), *network)
    view = layout.view(x)
    d_gates = torch.cat([layout.sum_of_products(view[part], incoming(part)) for part in layout.parts])
    d_pooled, *d_network = small.gradients(d_gates)
    d_x = _map_gradient(layout, incoming, x, small.output, d_pooled, kept, filters) if needs[0] else None
    return d_x, incoming.d_residual, None, None, None, *d_network


def _map_gradient(
    layout: Layout,
    incoming: Incoming,
    x: Tensor,
    gates: Tensor,
    d_pooled: Tensor,
    pooled: list[Tensor],
    filters: Tensor | None,
) -> Tensor:
    d_x = layout.empty(x)
    view, target = layout.view(x), layout.view(d_x)
    gates, d_pooled = gates.to(x.dtype), d_pooled / len(pooled)
    shift = d_pooled / (x.shape[2] * x.shape[3]) if filters is None else torch.zeros_like(d_pooled)
    along = [layout.along(y, layout.channel) for y in (d_pooled, *pooled)]
    fixed = None if filters is None else _laid_out(filters, layout, x)
    for part in layout.parts:
        layout.scale_and_shift(incoming(part), gates[part], shift[part], target[part])
        if fixed is not None:
            target[part].add_(torch.mul(fixed, along[0][part], out=layout.spare(target[part])))
        if len(pooled) == 2:
            layout.add_maximum_gradient(target[part], view[part], along[2][part], along[0][part], layout.positions)
    return d_x


def _together(pooled: Tensor, maximum: Tensor | None = None) -> Tensor:
    """What the network sees of each channel: what was pooled, or the mean of that and the maximum."""
    return pooled if maximum is None else 0.5 * pooled + 0.5 * maximum


def _laid_out(filters: Tensor, layout: Layout, x: Tensor) -> Tensor:
    """The filters for the map as it lies."""
    return layout.view(over_map(filters.to(x.dtype), x.shape[2], x.shape[3]).unsqueeze(0)).contiguous()
