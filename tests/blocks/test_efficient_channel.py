"""Efficient channel attention against golden data and timm's module."""

import pytest
import torch
from official_block import assert_equals_the_official_block
from timm.layers import EcaModule

from attnzoo.blocks import EfficientChannelAttention


@pytest.mark.parametrize('kernel_size', [3, 5])
def test_equals_the_official_block(kernel_size):
    assert_equals_the_official_block(
        f'eca_k{kernel_size}',
        make=lambda _: EfficientChannelAttention(32, kernel_size),
        rename=str,
        call=lambda _: lambda module, x: module(x),
    )


@pytest.mark.parametrize('channels', [1, 8, 16, 17, 64, 100, 256, 512, 2048])
def test_kernel_adapts_to_the_channels_as_in_timm(channels):
    torch.manual_seed(0)
    theirs, ours = EcaModule(channels), EfficientChannelAttention(channels)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, channels, 3, 4)
    torch.testing.assert_close(ours(x), theirs(x))


def test_gate_gamma_and_beta_are_those_of_timm():
    settings = dict(gamma=1, beta=3)
    theirs = EcaModule(64, gate_layer='hard_sigmoid', **settings)
    ours = EfficientChannelAttention(64, gate='hard_sigmoid', **settings)
    ours.load_state_dict(theirs.state_dict())
    x = 4 * torch.randn(2, 64, 3, 4)
    torch.testing.assert_close(ours(x), theirs(x))
    assert ours.conv.kernel_size == (9,)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(kernel_size=4), 'kernel_size: expected an odd number, got 4'),
        (dict(gate='soft'), "gate: expected one of 'relu', .*, got 'soft'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        EfficientChannelAttention(16, **arguments)
