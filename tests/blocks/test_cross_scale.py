"""The cross-scale embedding, in the official CrossFormer-T."""

import pytest
import torch
from check import check
from timm.layers import Mlp
from torch import nn

from attnzoo.blocks import CrossScaleEmbedding, LongShortAttention

DIMS, DEPTHS, INTERVALS = (64, 128, 256, 512), (1, 1, 8, 6), (8, 4, 2, 1)


class Block(nn.Module):
    def __init__(self, dim, interval):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), LongShortAttention(dim, dim // 32, group=7, interval=interval)
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim, 4 * dim)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class CrossFormerTiny(nn.Module):
    """Embeddings and attention are ours, the rest is what the paper says."""

    def __init__(self):
        super().__init__()
        merge = dict(kernels=(2, 4), stride=2, norm_first=True)
        self.embeddings = nn.ModuleList(
            [CrossScaleEmbedding(3, 64)] + [CrossScaleEmbedding(dim, 2 * dim, **merge) for dim in DIMS[:3]]
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(dim, interval if i % 2 else 1) for i in range(depth)))
            for dim, depth, interval in zip(DIMS, DEPTHS, INTERVALS, strict=True)
        )
        self.norm, self.head = nn.LayerNorm(512), nn.Linear(512, 1000)

    def features(self, x):
        x, maps = x.permute(0, 2, 3, 1), []
        for embedding, stage in zip(self.embeddings, self.stages, strict=True):
            x = stage(embedding(x))
            maps.append(x.permute(0, 3, 1, 2))
        return maps

    def forward(self, x):
        return self.head(self.norm(self.features(x)[-1].flatten(2).transpose(1, 2)).mean(1))


def from_official(state_dict):
    renamed = {}
    for key, value in state_dict.items():
        if key.startswith('layers.'):
            stage, key = int(key.split('.')[1]), key.split('.', 2)[2]
            if key.startswith('downsample.'):
                key = f'embeddings.{stage + 1}.' + key.removeprefix('downsample.').replace('reductions', 'projs')
            else:
                key = f'stages.{stage}.' + key.removeprefix('blocks.')
        renamed[key.replace('patch_embed.', 'embeddings.0.')] = value
    return renamed


def test_crossformer_equals_the_official_model():
    """Logits, gradients and maps at 224; maps of the dense code at 256 x 192, whose last stage (8 x 6) is one group."""
    assert check('crossformer_tiny', lambda entry: CrossFormerTiny(), from_official, CrossFormerTiny.features)


@pytest.mark.parametrize('size', [(4, 4), (13, 30)])
def test_any_size(size):
    """Patches that do not fit any more are left out, by all kernels alike."""
    assert CrossScaleEmbedding(3, 64)(torch.randn(1, *size, 3)).shape == (1, size[0] // 4, size[1] // 4, 64)


@pytest.mark.parametrize('arguments', [dict(), dict(kernels=(2, 4), stride=2, norm_first=True)])
def test_graphs(arguments, assert_same_in_a_graph):
    module = CrossScaleEmbedding(8, 16, **arguments)
    assert_same_in_a_graph(module, torch.randn(2, 16, 12, 8), torch.randn(1, 9, 7, 8))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(kernels=(4, 7)), r'kernels: expected sizes of 4 \(the stride\) plus an even number, got \(4, 7\)'),
        (dict(kernels=(2, 4)), 'kernels: expected sizes of 4'),
        (dict(kernels=()), 'kernels: expected sizes of 4'),
        (dict(dim_out=12), 'dim_out: expected a multiple of 8 for 4 kernels, got 12'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CrossScaleEmbedding(3, **{'dim_out': 64, **arguments})
