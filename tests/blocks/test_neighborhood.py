"""Neighborhood attention against the official module."""

import pytest
import torch
from check import load_golden
from official_block import assert_equals_the_official_block

from attnzoo.blocks import NeighborhoodAttention

OFFICIAL = [
    *('na2d_k3_d1_norpb', 'na2d_k3_d1_rpb', 'na2d_k3_d2_norpb', 'na2d_k3_d2_rpb'),
    *('na2d_k5_d1_norpb', 'na2d_k5_d1_rpb', 'na2d_k5_d2_norpb'),
    *('na2d_k7_d1_norpb', 'na2d_k7_d1_rpb', 'na2d_k7_d2_norpb', 'na2d_k7_d2_rpb', 'na2d_k7_d1_smallmap'),
]


@pytest.mark.parametrize('name', OFFICIAL)
def test_equals_the_official_block(name):
    meta, _ = load_golden(name)
    has_bias = any(key == 'rpb' for key, *_ in meta['manifest'])
    kernel, dilation = (int(part[1:]) for part in name.split('_')[1:3])
    assert_equals_the_official_block(
        name,
        make=lambda _: NeighborhoodAttention(24, num_heads=3, kernel=kernel, dilation=dilation, position_bias=has_bias),
        rename=lambda key: key,
        call=lambda _: lambda module, x: module(x),
    )


def test_masked_padding_does_not_matter():
    """Neither its size, which a larger dilation of a smaller map asks for, nor what the projection makes of it."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 16)
    for dilation in (1, 2, 5):
        module = NeighborhoodAttention(16, 2, kernel=7, dilation=dilation, mask_padding=True)
        q, k, v = module.qkv(x).flatten(1, 2).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        rows, columns = torch.arange(4), torch.arange(5)
        scores = (q @ k.mT * 8**-0.5).unflatten(2, (4, 5)).unflatten(4, (4, 5))
        distance = [(n[None] - n[:, None]) / dilation for n in (rows, columns)]
        row, column = torch.broadcast_tensors(distance[0][:, None, :, None], distance[1][None, :, None, :])
        near = (row % 1 == 0) & (column % 1 == 0)  # the map is smaller than the kernel: all keys of equal residue
        scores = scores + module.rpb[:, (row + 6).long(), (column + 6).long()]
        weights = scores.masked_fill(~near, float('-inf')).flatten(4).flatten(2, 3).softmax(-1)
        expected = module.proj((weights @ v).transpose(1, 2).flatten(2)).unflatten(1, (4, 5))
        torch.testing.assert_close(module(x), expected)
        assert not torch.allclose(unmasked(module)(x), expected, atol=1e-3)


def unmasked(module: NeighborhoodAttention) -> NeighborhoodAttention:
    other = NeighborhoodAttention(16, 2, kernel=7, dilation=module.dilation)
    other.load_state_dict(module.state_dict())
    with torch.no_grad():
        other.qkv.bias.fill_(1.0)
    return other


def test_causal_axes_see_nothing_behind_them():
    torch.manual_seed(0)
    module = NeighborhoodAttention(16, 2, kernel=3, is_causal=(True, False)).double()
    x = torch.randn(1, 8, 6, 16, dtype=torch.float64)
    later = x.clone()
    later[:, 5:] += 1
    changed = (module(later) - module(x)).abs().amax((0, 2, 3)) > 1e-9
    assert changed.tolist() == [False] * 5 + [True] * 3


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(num_heads=3), 'num_heads: expected a divisor of 16 channels, got 3'),
        (dict(kernel=4), 'kernel: expected odd numbers, got 4'),
        (dict(kernel=(3, 6)), r'kernel: expected odd numbers, got \(3, 6\)'),
        (dict(kernel=0), 'kernel: expected a positive number'),
        (dict(dilation=0), 'dilation: expected a positive number'),
        (dict(attn_drop=1.5), 'attn_drop: expected a rate from 0 to 1, got 1.5'),
    ],
)
def test_bad_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        NeighborhoodAttention(16, **{'num_heads': 2} | settings)
