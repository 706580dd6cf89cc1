"""Frequency channel attention against golden data of the authors' layer, and its filters against the transform."""

import math

import pytest
import torch
from official_block import assert_equals_the_official_block
from torch.nn import functional as F

from attnzoo.blocks import FrequencyChannelAttention

OFFICIAL = {
    'fca_low8': dict(dct_h=7, dct_w=7, reduction=8, freq_sel_method='low8'),
    'fca_bot2': dict(dct_h=28, dct_w=28, reduction=8, freq_sel_method='bot2'),
}


@pytest.mark.parametrize('name', OFFICIAL)
def test_equals_the_official_block(name):
    assert_equals_the_official_block(
        name,
        make=lambda _: FrequencyChannelAttention(32, **OFFICIAL[name]),
        rename=str,
        call=lambda _: lambda module, x: module(x),
    )


@pytest.mark.parametrize('name', OFFICIAL)
def test_filters_are_the_official_ones(name):
    from check import load_golden

    made = FrequencyChannelAttention(32, **OFFICIAL[name]).dct_layer.weight
    official = torch.from_numpy(load_golden(name)[1]['kept/dct_layer.weight'])
    torch.testing.assert_close(made, official, rtol=0, atol=2e-7)


@pytest.mark.parametrize('frequencies', ['top1', 'top16', 'top32', 'low32', 'bot32'])
def test_filters_are_cosines_of_different_frequencies(frequencies):
    """Of 14 x 21 positions: twice and three times the frequencies of a 7 x 7 map."""
    count = int(frequencies[3:])
    filters = FrequencyChannelAttention(64, 14, 21, 4, frequencies, dtype=torch.float64).dct_layer.weight
    groups = filters.view(count, 64 // count, -1)
    assert (groups == groups[:, :1]).all()
    products = groups[:, 0] @ groups[:, 0].T
    torch.testing.assert_close(products, torch.eye(count, dtype=torch.float64))
    rows = (torch.arange(14, dtype=torch.float64) + 0.5) * math.pi / 14
    columns = (torch.arange(21, dtype=torch.float64) + 0.5) * math.pi / 21
    waves = [torch.outer((2 * u * rows).cos(), (3 * v * columns).cos()).flatten() for u in range(7) for v in range(7)]
    waves = torch.stack([wave / wave.norm() for wave in waves])
    assert ((groups[:, 0] @ waves.T).amax(1) > 1 - 1e-12).all()


@pytest.mark.parametrize('size', [(7, 14), (9, 14), (25, 31), (3, 5)])
def test_maps_of_another_size_are_averaged_first(size):
    torch.manual_seed(0)
    module = FrequencyChannelAttention(32, 7, 14, 4).double()
    x = torch.randn(2, 32, *size, dtype=torch.float64)
    pooled = (F.adaptive_avg_pool2d(x, (7, 14)) * module.dct_layer.weight).sum((2, 3))
    torch.testing.assert_close(module(x), x * module.fc(pooled)[:, :, None, None])


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(freq_sel_method='top3'), "freq_sel_method: expected 'top', 'low' or 'bot' and one of 1, .*, got 'top3'"),
        (dict(freq_sel_method='mid4'), "freq_sel_method: expected .*, got 'mid4'"),
        (dict(freq_sel_method='top32'), "freq_sel_method: .* divides 16 channels, got 'top32'"),
        (dict(dct_h=6), 'dct_h: expected at least 7, got 6'),
        (dict(reduction=17), 'reduction: expected 1 to 16, so that channels are left of 16, got 17'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        FrequencyChannelAttention(16, **arguments)
