"""DaViT's blocks against the official modules and timm's."""

import pytest
import torch
from official_block import assert_equals_the_official_block
from timm.models.davit import ChannelBlock, SpatialBlock
from torch import nn

from attnzoo.blocks import ChannelGroupAttention, ConditionalPositionEncoding, DualAttention


def channels_first(_):
    return lambda module, x: module(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize('kind', ['spatial', 'channel'])
def test_equals_the_official_block(kind):
    """The second run of the spatial block is a map that the windows do not divide."""
    assert_equals_the_official_block(
        f'davit_{kind}_block',
        make=lambda _: getattr(DualAttention(24, num_heads=3, window=4), f'{kind}_block'),
        rename=lambda key: key.replace('cpe.0', 'cpe1').replace('cpe.1', 'cpe2'),
        call=channels_first,
    )


@pytest.mark.parametrize('qkv_bias', [True, False])
def test_equals_timm_under_its_names(qkv_bias):
    torch.manual_seed(0)
    arguments = dict(num_heads=3, mlp_ratio=3.0, qkv_bias=qkv_bias)
    theirs = nn.Sequential(SpatialBlock(24, window_size=4, **arguments), ChannelBlock(24, **arguments)).double()
    ours = DualAttention(24, window=4, **arguments).double()
    names = {'0': 'spatial_block', '1': 'channel_block'}
    ours.load_state_dict({f'{names[key[0]]}{key[1:]}': value for key, value in theirs.state_dict().items()})
    x = torch.randn(2, 24, 9, 13, dtype=torch.float64)
    torch.testing.assert_close(channels_first(None)(ours, x), theirs(x))


def test_dropout_and_stochastic_depth_are_off_in_evaluation():
    torch.manual_seed(0)
    dropping = DualAttention(16, 2, window=3, drop_path=0.5, attn_drop=0.3, proj_drop=0.4)
    plain = DualAttention(16, 2, window=3)
    plain.load_state_dict(dropping.state_dict())
    x = torch.randn(4, 7, 9, 16)
    assert not torch.allclose(dropping.train()(x), plain(x), atol=1e-3)
    torch.testing.assert_close(dropping.eval()(x), plain(x), rtol=0, atol=0)
    channel = ChannelGroupAttention(16, 2, proj_drop=1.0)
    assert not channel.train()(x).any()


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: ConditionalPositionEncoding(16, kernel=4), 'kernel: expected an odd number, got 4'),
        (lambda: ChannelGroupAttention(16, num_heads=3), 'num_heads: expected a divisor of 16 channels, got 3'),
        (lambda: ChannelGroupAttention(16, proj_drop=1.5), 'proj_drop: expected a rate from 0 to 1, got 1.5'),
        (lambda: DualAttention(16, num_heads=3), 'num_heads: expected a divisor of 16 channels, got 3'),
        (lambda: DualAttention(16, window=0), 'window: expected a positive number'),
        (lambda: DualAttention(16)(torch.zeros(1, 16, 8, 8)), r'x: expected a map .* got shape \(1, 16, 8, 8\)'),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
