"""Focal modulation against the official module and timm's."""

import pytest
import timm.models.focalnet
import torch
from official_block import assert_equals_the_official_block

from attnzoo.blocks import FocalModulation


@pytest.mark.parametrize('levels', [2, 3])
@pytest.mark.parametrize('normed', [False, True])
def test_equals_the_official_module(levels, normed):
    assert_equals_the_official_block(
        f'focal_modulation_l{levels}{"_postln_norm" if normed else ""}',
        make=lambda _: FocalModulation(24, 3, levels, post_norm=normed, normalize_modulator=normed),
        rename=lambda key: key,
        call=lambda _: lambda module, x: module(x),
    )


@pytest.mark.parametrize(
    'arguments, post_norm',
    [(dict(focal_window=3, focal_level=3), False), (dict(focal_window=9, focal_level=1, bias=False), True)],
)
def test_equals_timm_with_its_weights(arguments, post_norm):
    torch.manual_seed(0)
    theirs = timm.models.focalnet.FocalModulation(
        12, use_post_norm=post_norm, normalize_modulator=post_norm, **arguments
    ).double()
    ours = FocalModulation(12, post_norm=post_norm, normalize_modulator=post_norm, norm_eps=1e-6, **arguments).double()
    weights = {key.replace('norm.', 'ln.'): value for key, value in theirs.state_dict().items()}
    ours.load_state_dict({key: value.view(ours.get_parameter(key).shape) for key, value in weights.items()})
    x = torch.randn(2, 12, 7, 9, dtype=torch.float64)
    torch.testing.assert_close(ours(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), theirs(x))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(focal_level=0), 'focal_level: expected at least 1, got 0'),
        (dict(focal_window=4), 'focal_window: expected an odd number, got 4'),
        (dict(focal_factor=1), 'focal_factor: expected an even number, got 1'),
        (dict(proj_drop=2.0), 'proj_drop: expected a rate from 0 to 1, got 2.0'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        FocalModulation(16, **arguments)
