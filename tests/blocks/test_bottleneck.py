"""BoTNet's attention against timm's module."""

import pytest
import torch
from timm.layers.bottleneck_attn import BottleneckAttn

from attnzoo.blocks import BottleneckAttention


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    'ours, theirs',
    [
        (dict(), dict()),
        (dict(num_heads=3, qk_ratio=0.5, stride=2), dict(num_heads=3, qk_ratio=0.5, stride=2)),
        (dict(head_dim=5, qkv_bias=True, scale_position=True), dict(dim_head=5, qkv_bias=True, scale_pos_embed=True)),
    ],
    ids=str,
)
def test_equals_timm_with_the_same_weights(ours, theirs, layout):
    torch.manual_seed(0)
    theirs = BottleneckAttn(16, 24, feat_size=(6, 8), **theirs).double()
    ours = BottleneckAttention(16, (6, 8), 24, **ours).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 16, 6, 8, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    out, expected = ours(x), theirs(x)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    assert out.is_contiguous(memory_format=layout)
    d_out = torch.randn_like(out)
    found = torch.autograd.grad(out, [x, *ours.parameters()], d_out)
    for one, true in zip(found, torch.autograd.grad(expected, [x, *theirs.parameters()], d_out), strict=True):
        torch.testing.assert_close(one, true, rtol=0, atol=1e-11)


def test_starts_as_timm_does():
    torch.manual_seed(0)
    modules = BottleneckAttn(512, feat_size=(14, 14)), BottleneckAttention(512, 14)
    theirs, ours = (dict(module.named_parameters()) for module in modules)
    for name, x in ours.items():
        assert 0.95 < x.std() / theirs[name].std() < 1.05, name


@pytest.mark.parametrize('size', [(6, 9), (7, 8), (8, 6), (3, 4)])
def test_another_size_is_named(size):
    module = BottleneckAttention(16, (6, 8))
    message = (
        r'x: expected a map of 6 x 8, .* \(feat_size\), got {0} x {1}: make a module with feat_size=\({0}, {1}\)'
    ).format(*size)
    with pytest.raises(ValueError, match=message):
        module(torch.zeros(1, 16, *size))


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(num_heads=3), 'num_heads: expected a divisor of 16 channels, got 3'),
        (dict(stride=4), 'stride: expected 1 or 2, got 4'),
        (dict(feat_size=0), 'feat_size: expected a positive number'),
        (dict(head_dim=-1), 'head_dim: expected at least 1, got -1'),
    ],
)
def test_bad_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        BottleneckAttention(16, **{'feat_size': 7} | settings)
