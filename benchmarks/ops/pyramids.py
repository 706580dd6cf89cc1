"""Ops of the pyramids against the published code of their models, or timm: TransNeXt, DaViT, BiFormer, CrossFormer."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from attnzoo.kernels import aggregated_attention, channel_attention, conv_glu, depthwise_conv, patch_conv

from .case import Case, parameters


def aggregated(batch: int, size: int, heads: int, pooled: int) -> Case:
    channels, neighbours = 24 * heads, 9

    def ours(*arguments: Tensor) -> Tensor:
        return aggregated_attention(*arguments, num_heads=heads)

    def official(
        q: Tensor,
        kv: Tensor,
        pool_kv: Tensor,
        temperature: Tensor,
        query_embedding: Tensor,
        local_bias: Tensor,
        pool_bias: Tensor,
        tokens: Tensor,
        token_bias: Tensor,
    ) -> Tensor:
        """All neighbours of all positions copied side by side by `unfold`, keys and values, then attended to."""

        def by_head(x: Tensor) -> Tensor:  # [B, N, H * W, d]
            return x.flatten(1, 2).unflatten(2, (-1, 24)).transpose(1, 2)

        def unfold(x: Tensor) -> Tensor:
            return F.unfold(x, kernel_size=3, padding=1)

        inside = unfold(torch.ones(1, 1, size, size)).view(neighbours, -1).T  # [H * W, 9]
        scale = F.softplus(temperature) * (inside.sum(1, keepdim=True) + pool_bias.shape[2]).log()
        unit_q = F.normalize(by_head(q), dim=-1)
        scaled_q = (unit_q + query_embedding) * scale
        k, v = kv.chunk(2, -1)
        k = F.normalize(by_head(k), dim=-1).transpose(1, 2).flatten(2)
        around = torch.cat([k, v.flatten(1, 2)], 2).transpose(1, 2).unflatten(2, (size, size))
        around = unfold(around).view(batch, 2 * heads, 24, neighbours, -1).permute(0, 1, 4, 2, 3)
        around_k, around_v = around.chunk(2, 1)  # [B, N, H * W, d, 9]
        local = (scaled_q.unsqueeze(-2) @ around_k).squeeze(-2)
        local = (local + local_bias.unsqueeze(1)).masked_fill(inside == 0, float('-inf'))
        pool_k, pool_v = pool_kv.chunk(2, -1)
        pool = scaled_q @ F.normalize(by_head(pool_k), dim=-1).mT + pool_bias
        weights = torch.cat([local, pool], -1).softmax(-1)
        local, pool = weights.split([neighbours, pool_bias.shape[2]], -1)
        local = unit_q @ tokens + token_bias + local
        out = (local.unsqueeze(-2) @ around_v.mT).squeeze(-2) + pool @ by_head(pool_v)
        return out.transpose(1, 2).reshape(batch, size, size, channels)

    maps = [torch.randn(batch, n, n, c) for n, c in ((size, channels), (size, 2 * channels), (pooled, 2 * channels))]
    learned = parameters(
        (heads, 1, 1), (heads, 1, 24), (heads, 9), (heads, size**2, pooled**2), (heads, 24, 9), (heads, 1, 9)
    )
    return Case(ours, official, maps, learned)


def glu(batch: int, size: int, channels: int, hidden: int) -> Case:
    def official(
        x: Tensor,
        fc1_weight: Tensor,
        conv_weight: Tensor,
        fc2_weight: Tensor,
        fc1_bias: Tensor,
        conv_bias: Tensor,
        fc2_bias: Tensor,
    ) -> Tensor:
        """One product for both halves, and the gate copied to a channels-first map for its convolution."""
        gate, value = F.linear(x.flatten(1, 2), fc1_weight, fc1_bias).chunk(2, -1)
        gate = gate.transpose(1, 2).view(batch, hidden, size, size).contiguous()
        gate = F.conv2d(gate, conv_weight, conv_bias, padding=1, groups=hidden).flatten(2).transpose(1, 2)
        return F.linear(F.gelu(gate) * value, fc2_weight, fc2_bias).view(x.shape)

    x = torch.randn(batch, size, size, channels)
    weights = parameters((2 * hidden, channels), (hidden, 1, 3, 3), (channels, hidden), (2 * hidden,), (hidden,))
    return Case(conv_glu, official, [], [x, *weights, *parameters((channels,))])


def channels_of_groups(batch: int, size: int, heads: int) -> Case:
    channels = 32 * heads

    def ours(qkv: Tensor) -> Tensor:
        return channel_attention(qkv, num_heads=heads)

    def timm(qkv: Tensor) -> Tensor:
        q, k, v = qkv.reshape(batch, size**2, 3, heads, 32).permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((k * 32**-0.5).transpose(-1, -2) @ v).softmax(-1)
        out = (weights @ q.transpose(-1, -2)).transpose(-1, -2)
        return out.transpose(1, 2).reshape(batch, size, size, channels)

    return Case(ours, timm, [torch.randn(batch, size, size, 3 * channels)], [])


def depthwise(batch: int, size: int, channels: int, kernel: int) -> Case:
    def torch_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=kernel // 2, groups=channels)
        return out.permute(0, 2, 3, 1)

    x = torch.randn(batch, size, size, channels)
    return Case(depthwise_conv, torch_conv, [], [x, *parameters((channels, 1, kernel, kernel), (channels,))])


def patches(batch: int, size: int, channels: int, kernel: int) -> Case:
    def torch_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, 4, (kernel - 4) // 2)

    x = torch.randn(batch, 3, size, size)
    return Case(patch_conv, torch_conv, [], [x, *parameters((channels, 3, kernel, kernel), (channels,))])


CASES: dict[str, Callable[[int], Case]] = {
    'aggregated_attention, TransNeXt-T stage 1': lambda batch: aggregated(batch, 56, 3, 7),
    'aggregated_attention, TransNeXt-T stage 2': lambda batch: aggregated(batch, 28, 6, 7),
    'aggregated_attention, TransNeXt-T stage 3': lambda batch: aggregated(batch, 14, 12, 7),
    'conv_glu, TransNeXt-T stage 1': lambda batch: glu(batch, 56, 72, 384),
    'conv_glu, TransNeXt-T stage 3': lambda batch: glu(batch, 14, 288, 768),
    'channel_attention, DaViT-T stage 1': lambda batch: channels_of_groups(batch, 56, 3),
    'channel_attention, DaViT-T stage 3': lambda batch: channels_of_groups(batch, 14, 12),
    'depthwise_conv 3x3, 56 x 56 x 64': lambda batch: depthwise(batch, 56, 64, 3),
    'depthwise_conv 5x5, 56 x 56 x 64': lambda batch: depthwise(batch, 56, 64, 5),
    'depthwise_conv 5x5, 14 x 14 x 256': lambda batch: depthwise(batch, 14, 256, 5),
    'depthwise_conv 7x7, 56 x 56 x 64': lambda batch: depthwise(batch, 56, 64, 7),
    'patch_conv 16x16, CrossFormer-S stem': lambda batch: patches(batch, 224, 12, 16),
    'patch_conv 32x32, CrossFormer-S stem': lambda batch: patches(batch, 224, 12, 32),
}

SMALL: dict[str, Callable[[], Case]] = {
    'aggregated_attention': lambda: aggregated(2, 6, 2, 3),
    'conv_glu': lambda: glu(2, 6, 8, 12),
    'channel_attention': lambda: channels_of_groups(2, 4, 2),
    'depthwise_conv': lambda: depthwise(2, 6, 8, 5),
    'patch_conv': lambda: patches(2, 32, 4, 16),
}
