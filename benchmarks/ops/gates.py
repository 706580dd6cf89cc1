"""Gates of CNNs against timm's modules, or the published formulation: SE, ECA, FcaNet, CBAM, triplet attention, ELA."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import EcaModule, SEModule
from torch import Tensor, nn
from torch.func import functional_call

from attnzoo.kernels import cbam_gate, channel_gate, ela_gate, triplet_gate

from .case import Case, parameters


def new_map(batch: int, channels: int, size: int, channels_last: bool) -> Tensor:
    x = torch.randn(batch, channels, size, size)
    return x.to(memory_format=torch.channels_last) if channels_last else x


def called_with(module: nn.Module) -> Callable[..., Tensor]:
    """A module as a function of its input and its parameters."""
    names = [name for name, _ in module.named_parameters()]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(module, dict(zip(names, values, strict=True)), (x,))

    return call


def squeeze_excite(batch: int, channels: int, size: int, channels_last: bool) -> Case:
    module = SEModule(channels)
    values = [x.detach().clone() for x in module.parameters()]

    def ours(x: Tensor, fc1_weight: Tensor, fc1_bias: Tensor, fc2_weight: Tensor, fc2_bias: Tensor) -> Tensor:
        return channel_gate(x, fc1_weight.flatten(1), fc2_weight.flatten(1), fc1_bias, fc2_bias)

    return Case(ours, called_with(module), [new_map(batch, channels, size, channels_last)], values)


def efficient_channels(batch: int, channels: int, size: int, channels_last: bool) -> Case:
    module = EcaModule(channels)
    values = [x.detach().clone() for x in module.parameters()]

    def ours(x: Tensor, conv_weight: Tensor) -> Tensor:
        return channel_gate(x, conv_weight=conv_weight)

    return Case(ours, called_with(module), [new_map(batch, channels, size, channels_last)], values)


def frequencies(batch: int, channels: int, size: int, channels_last: bool) -> Case:
    filters = torch.randn(channels, size, size)

    def ours(x: Tensor, fc1_weight: Tensor, fc2_weight: Tensor) -> Tensor:
        return channel_gate(x, fc1_weight, fc2_weight, filters=filters)

    def official(x: Tensor, fc1_weight: Tensor, fc2_weight: Tensor) -> Tensor:
        pooled = (x * filters).sum((2, 3))
        gates = F.linear(F.relu(F.linear(pooled, fc1_weight)), fc2_weight).sigmoid()
        return x * gates[:, :, None, None].expand_as(x)

    values = parameters((channels // 16 or 1, channels), (channels, channels // 16 or 1))
    return Case(ours, official, [new_map(batch, channels, size, channels_last)], values)


def positions(x: Tensor, weight: Tensor, norm_weight: Tensor, norm_bias: Tensor, training: bool) -> Tensor:
    """The published gate of positions: maximum and mean over channels, 7x7 convolution, batch norm."""
    pooled = torch.cat((x.max(1)[0].unsqueeze(1), x.mean(1).unsqueeze(1)), 1)
    scores = F.conv2d(pooled, weight, padding=weight.shape[2] // 2)
    return x * F.batch_norm(scores, *new_statistics(x), norm_weight, norm_bias, training, 0.01).sigmoid()


def new_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_zeros(1, dtype=torch.float32), x.new_ones(1, dtype=torch.float32)


def cbam(batch: int, channels: int, size: int, channels_last: bool, training: bool = False) -> Case:
    def ours(
        x: Tensor,
        fc1_weight: Tensor,
        fc2_weight: Tensor,
        fc1_bias: Tensor,
        fc2_bias: Tensor,
        conv_weight: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
    ) -> Tensor:
        mlp = fc1_weight, fc2_weight, fc1_bias, fc2_bias
        return cbam_gate(x, *mlp, conv_weight, norm_weight, norm_bias, *new_statistics(x), training)

    def official(
        x: Tensor,
        fc1_weight: Tensor,
        fc2_weight: Tensor,
        fc1_bias: Tensor,
        fc2_bias: Tensor,
        conv_weight: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
    ) -> Tensor:
        def mlp(pooled: Tensor) -> Tensor:
            return F.linear(F.relu(F.linear(pooled.flatten(1), fc1_weight, fc1_bias)), fc2_weight, fc2_bias)

        scores = mlp(F.avg_pool2d(x, x.shape[2:])) + mlp(F.max_pool2d(x, x.shape[2:]))
        x = x * scores.sigmoid()[:, :, None, None].expand_as(x)
        return positions(x, conv_weight, norm_weight, norm_bias, training)

    hidden = channels // 16 or 1
    values = parameters((hidden, channels), (channels, hidden), (hidden,), (channels,), (1, 2, 7, 7), (1,), (1,))
    return Case(ours, official, [new_map(batch, channels, size, channels_last)], values)


def triplet(batch: int, channels: int, size: int, channels_last: bool, training: bool = False) -> Case:
    def ours(x: Tensor, *weights: Tensor) -> Tensor:
        means, variances = zip(*(new_statistics(x) for _ in range(3)), strict=True)
        lists = [list(weights[i::3]) for i in range(3)]
        return triplet_gate(x, *lists, list(means), list(variances), training)

    def official(x: Tensor, *weights: Tensor) -> Tensor:
        out = positions(x, *weights[6:], training)
        for i, order in enumerate(((0, 2, 1, 3), (0, 3, 2, 1))):
            turned = positions(x.permute(order).contiguous(), *weights[3 * i : 3 * i + 3], training)
            out = out + turned.permute(order).contiguous()
        return out * (1 / 3)

    values = parameters(*[(1, 2, 7, 7), (1,), (1,)] * 3)
    return Case(ours, official, [new_map(batch, channels, size, channels_last)], values)


def strips(batch: int, channels: int, size: int, channels_last: bool) -> Case:
    groups = min(16, channels)

    def ours(x: Tensor, conv_weight: Tensor, norm_weight: Tensor, norm_bias: Tensor) -> Tensor:
        return ela_gate(x, conv_weight, conv_weight, groups, norm_weight, norm_weight, norm_bias, norm_bias)

    def paper(x: Tensor, conv_weight: Tensor, norm_weight: Tensor, norm_bias: Tensor) -> Tensor:
        def gate(line: Tensor) -> Tensor:
            line = F.conv1d(line, conv_weight, padding=conv_weight.shape[2] // 2, groups=channels)
            return F.group_norm(line, groups, norm_weight, norm_bias).sigmoid()

        return x * gate(x.mean(3)).view(batch, channels, size, 1) * gate(x.mean(2)).view(batch, channels, 1, size)

    values = parameters((channels, 1, 7), (channels,), (channels,))
    return Case(ours, paper, [new_map(batch, channels, size, channels_last)], values)


GATES: dict[str, Callable[[int, int, int, bool], Case]] = {
    'channel_gate, SE': squeeze_excite,
    'channel_gate, ECA': efficient_channels,
    'channel_gate, FcaNet': frequencies,
    'cbam_gate': cbam,
    'cbam_gate, statistics of the batch': partial(cbam, training=True),
    'triplet_gate': triplet,
    'triplet_gate, statistics of the batch': partial(triplet, training=True),
    'ela_gate': strips,
}
LAYOUTS = {'NCHW': False, 'channels_last': True}


def at_one_size(
    make: Callable[[int, int, int, bool], Case], channels: int, size: int, last: bool
) -> Callable[[int], Case]:
    return lambda batch: make(batch, channels, size, last)


CASES: dict[str, Callable[[int], Case]] = {
    f'{name}, 256 x 56 x 56, {layout}': at_one_size(make, 256, 56, last)
    for name, make in GATES.items()
    for layout, last in LAYOUTS.items()
}

SMALL: dict[str, Callable[[], Case]] = {
    f'{name}, {layout}': lambda make=make, last=last: make(2, 8, 9, last)  # type: ignore[misc]
    for name, make in GATES.items()
    for layout, last in LAYOUTS.items()
}
