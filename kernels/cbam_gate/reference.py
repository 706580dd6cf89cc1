"""CBAM in plain PyTorch: the definition of the op, and what runs where a kernel does not.

Legend: B images, C channels, H x W map.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attnzoo.kernels._cpu import by_hand, runs_by_hand
from attnzoo.kernels._dispatch import cast_for_autocast
from attnzoo.kernels._gates import Incoming, Layout, Small, behind, finish, gate_map
from attnzoo.kernels._spatial_gate import Statistics, spatial_gate


def cbam_gate_reference(
    x: Tensor,
    residual: Tensor | None,
    activation: str | None,
    pools: list[str],
    fc1_weight: Tensor,
    fc2_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_bias: Tensor | None,
    conv_weight: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """The op on arguments that `cbam_gate` has checked."""
    if torch.jit.is_scripting():
        return _plain(
            x, residual, activation, pools, fc1_weight, fc2_weight, fc1_bias, fc2_bias, conv_weight, norm_weight,
            norm_bias, running_mean, running_var, training, momentum, eps,
        )  # fmt: skip
    else:
        return _unscripted(
            x, residual, activation, pools, fc1_weight, fc2_weight, fc1_bias, fc2_bias, conv_weight, norm_weight,
            norm_bias, Statistics(running_mean, running_var, training, momentum, eps),
        )  # fmt: skip


def _unscripted(x: Tensor, residual: Tensor | None, activation: str | None, pools: list[str], *others: Any) -> Tensor:
    *mlp, conv_weight, norm_weight, norm_bias, statistics = others
    tensors = (*mlp, conv_weight, norm_weight, norm_bias)
    if not (set(pools) <= {'avg', 'max'} and runs_by_hand(x, residual, *tensors)):
        return _plain(x, residual, activation, pools, *tensors, *statistics)
    if conv_weight is not None:
        (conv_weight,) = cast_for_autocast(conv_weight)
    now, later = behind(activation)
    arguments = (x, residual, now, pools, *mlp, conv_weight, norm_weight, norm_bias, statistics.settled())
    return finish(by_hand(_forward, _backward, _again, *arguments), None, later)


def _plain(
    x: Tensor,
    residual: Tensor | None,
    activation: str | None,
    pools: list[str],
    fc1_weight: Tensor,
    fc2_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_bias: Tensor | None,
    conv_weight: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    pooled = torch.stack([_pool(x, pool) for pool in pools])
    gate = _channel_gate(pooled, fc1_weight, fc2_weight, fc1_bias, fc2_bias).unsqueeze(2).unsqueeze(3)
    if conv_weight is None:
        return gate_map(x, gate, residual, activation)
    x = x * gate.to(x.dtype)
    maximum_and_mean = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
    gate = spatial_gate(
        maximum_and_mean, conv_weight, norm_weight, norm_bias, running_mean, running_var, training, momentum, eps
    )
    return gate_map(x, gate, residual, activation)


def _pool(x: Tensor, pool: str) -> Tensor:
    """[B, C, H, W] -> [B, C]."""
    if pool == 'avg':
        return x.mean((2, 3))
    if pool == 'max':
        return x.amax((2, 3))
    if pool == 'lp':
        return torch.linalg.vector_norm(x, 2.0, (2, 3))
    return x.logsumexp((2, 3))


def _channel_gate(
    pooled: Tensor, fc1_weight: Tensor, fc2_weight: Tensor, fc1_bias: Tensor | None, fc2_bias: Tensor | None
) -> Tensor:
    """The gates [B, C] of pooled channels [pools, B, C]."""
    hidden = F.relu(F.linear(pooled.to(fc1_weight.dtype), fc1_weight, fc1_bias))
    return F.linear(hidden, fc2_weight, fc2_bias).sum(0).sigmoid()


def _again(*arguments: Any) -> Tensor:
    """The op in PyTorch's own operations, on the arguments of the passes by hand."""
    *others, statistics = arguments
    return _plain(*others, *statistics.again())


def _forward(
    x: Tensor,
    residual: Tensor | None,
    activation: str | None,
    pools: list[str],
    fc1_weight: Tensor,
    fc2_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_bias: Tensor | None,
    conv_weight: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    statistics: Statistics,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    layout = Layout(x)
    view = layout.view(x)
    pooled = torch.stack([layout.means(view) if pool == 'avg' else view.amax(layout.positions) for pool in pools])
    kept = [pooled]
    gate = _channel_gate(pooled, fc1_weight, fc2_weight, fc1_bias, fc2_bias).to(x.dtype)
    factor = layout.along(gate, layout.channel)
    if conv_weight is None:
        out = layout.gated(x, factor, residual, activation)
    else:
        out = layout.empty(x)
        target = layout.view(out)
        maximum_and_mean = x.new_empty(x.shape[0], 2, *x.shape[2:])
        for part in layout.parts:
            torch.mul(view[part], factor[part], out=target[part])
            maximum_and_mean[part, 0] = target[part].amax(layout.channel)
            maximum_and_mean[part, 1] = layout.mean(target[part], layout.channel)
        kept.append(maximum_and_mean)
        gate = statistics.gate(maximum_and_mean, conv_weight, norm_weight, norm_bias).to(x.dtype)
        factor = layout.along(gate.squeeze(1), layout.row, layout.column)
        for part in layout.parts:
            layout.finish(target[part].mul_(factor[part]), part, residual, activation)
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
    pools: list[str],
    *others: Any,
) -> tuple[Tensor | None, ...]:
    *mlp, conv_weight, norm_weight, norm_bias, statistics = others
    layout = Layout(x)
    d_x = layout.empty(x)
    view, target = layout.view(x), layout.view(d_x)
    incoming = Incoming(layout, grad, kept.pop() if activation is not None else None, needs[1])
    pooled = kept[0]
    networks = [Small(_channel_gate, pooled[:, part], *mlp) for part in layout.parts]
    gates = [network.output.to(x.dtype) for network in networks]
    gradient: Callable[[slice], Tensor] = incoming
    d_spatial: list[Any] = [None, None, None]
    if conv_weight is not None:
        gradient = through = _ThroughPositions(layout, incoming, view, gates, kept[1])
        d_spatial = through.backward(conv_weight, norm_weight, norm_bias, statistics)

    d_mlp: list[Any] = [None] * len(mlp)
    for part, network, gate in zip(layout.parts, networks, gates, strict=True):
        d_gated = gradient(part)
        d_gate = layout.sum_of_products(view[part], d_gated, target[part])
        d_pooled, *d_part = network.gradients(d_gate)
        d_mlp = [one if total is None else total + one for total, one in zip(d_mlp, d_part, strict=True)]
        shift = torch.zeros_like(d_gate)
        for pool, d_pool in zip(pools, d_pooled, strict=True):
            if pool == 'avg':
                shift = shift + d_pool / (x.shape[2] * x.shape[3])
        layout.scale_and_shift(d_gated, gate, shift, target[part])
        for pool, maximum, d_pool in zip(pools, pooled[:, part], d_pooled, strict=True):
            if pool == 'max':
                maximum, d_pool = (layout.along(y, layout.channel) for y in (maximum, d_pool))
                layout.add_maximum_gradient(target[part], view[part], maximum, d_pool, layout.positions)
    return d_x if needs[0] else None, incoming.d_residual, None, None, *d_mlp, *d_spatial, None


class _ThroughPositions:
    """The gradient of y, x times its gates of channels, through the gate of positions: called part by part."""

    def __init__(self, layout: Layout, incoming: Incoming, view: Tensor, gates: list[Tensor], maximum_and_mean: Tensor):
        self.layout, self.incoming, self.view = layout, incoming, view
        self.factor = layout.along(torch.cat(gates), layout.channel)
        self.maximum_and_mean = maximum_and_mean
        self.of_positions: list[Tensor] = []

    def backward(
        self, conv_weight: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, statistics: Statistics
    ) -> list[Any]:
        """Gradients of the weights."""
        layout, sums = self.layout, []
        network = Small(statistics.again().gate, self.maximum_and_mean, conv_weight, norm_weight, norm_bias)
        for part in layout.parts:
            product = torch.mul(self.incoming(part), self.view[part], out=layout.spare(self.view[part]))
            sums.append(layout.sums_of_channels(product, self.factor[part]))
        d_pooled, *d_weights = network.gradients(torch.cat(sums).unsqueeze(1))
        gate, maximum = network.output.squeeze(1).to(self.view.dtype), self.maximum_and_mean[:, 0]
        d_mean = d_pooled[:, 1] / self.view.shape[layout.channel]
        self.of_positions = [
            layout.along(y, layout.row, layout.column) for y in (gate, maximum, d_pooled[:, 0], d_mean)
        ]
        return d_weights

    def __call__(self, part: slice) -> Tensor:
        gate, maximum, d_maximum, d_mean = (y[part] for y in self.of_positions)
        spare = self.layout.spare(self.view[part])
        y = torch.mul(self.view[part], self.factor[part], out=spare)
        are_maxima, share = self.layout.maxima(y, maximum, d_maximum, (self.layout.channel,), out=spare)
        if self.layout.channels_inside:  # addcmul is many times slower with two factors for all channels
            spare.mul_(share).add_(d_mean)
        else:
            torch.addcmul(d_mean, are_maxima, share, out=spare)
        return spare.addcmul_(self.incoming(part), gate)
