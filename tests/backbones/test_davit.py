"""DaViT: equality with the official models and timm's, weights, input sizes."""

import argparse

import pytest
import timm
import torch
from check import check, official_state_dict
from torch.utils.flop_counter import FlopCounterMode

from attnzoo.backbones import WeightsNotFoundError, davit

SMALL = dict(embed_dims=(16, 32, 32, 64), depths=(1, 1, 2, 1), head_dim=8, num_classes=5)
SIZES = ('tiny', 'small', 'base', 'large', 'huge', 'giant')


def convert(state_dict):
    return davit.checkpoint_filter_fn(state_dict, None)


@pytest.mark.parametrize('size', ['tiny', pytest.param('small', marks=pytest.mark.slow)])
def test_equals_the_official_model(size):
    assert check(f'davit_{size}', lambda entry: timm.create_model(f'davit_{size}_fused'), key_map=convert)


@pytest.mark.parametrize('size, gmacs', [('tiny', 4.5218), ('small', 8.773), ('base', 15.4738)])
def test_size_is_the_official_one(size, gmacs):
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        timm.create_model(f'davit_{size}_fused', device='meta')(torch.empty(1, 3, 224, 224, device='meta'))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, abs=1e-4)


@pytest.mark.parametrize('size', SIZES)
def test_parameters_are_those_of_timm(size):
    ours = timm.create_model(f'davit_{size}_fused', device='meta').state_dict()
    theirs = convert(timm.create_model(f'davit_{size}', device='meta').state_dict())
    assert {key: x.shape for key, x in ours.items()} == {key: x.shape for key, x in theirs.items()}


@pytest.mark.parametrize('size', [(64, 64), (65, 93), (250, 230)])
def test_equals_timm_with_its_weights(size):
    torch.manual_seed(0)
    heads = tuple(dim // SMALL['head_dim'] for dim in SMALL['embed_dims'])
    arguments = {key: value for key, value in SMALL.items() if key != 'head_dim'}
    theirs = timm.create_model('davit_tiny', num_heads=heads, **arguments).double().eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = timm.create_model('davit_tiny_fused', **SMALL).double().eval()
    ours.load_state_dict(convert(theirs.state_dict()))
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-9, atol=1e-9)


def test_official_checkpoint_loads_from_a_file(tmp_path):
    """As the authors' training script writes it: keys of a wrapped model, arguments and counters beside them."""
    weights = official_state_dict('davit_tiny')
    contents = dict(
        state_dict={f'module.{key}': x for key, x in weights.items()}, epoch=299, args=argparse.Namespace(lr=1e-3)
    )
    torch.save(contents, tmp_path / 'davit_t.pth')
    overlay = dict(file=str(tmp_path / 'davit_t.pth'))
    model = timm.create_model('davit_tiny_fused', pretrained=True, pretrained_cfg_overlay=overlay)
    expected, own = convert(weights), model.state_dict()
    assert own.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(own[key], value, rtol=0, atol=0)
    other = timm.create_model(
        'davit_tiny_fused', pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7, in_chans=1
    )
    torch.testing.assert_close(other.stem.conv.weight, weights['patch_embeds.0.proj.weight'].sum(1, keepdim=True))
    torch.testing.assert_close(
        other.stages[2].blocks[1].channel_block.cpe2.proj.weight, weights['main_blocks.2.1.1.cpe.1.proj.weight']
    )
    assert other.head.fc.weight.shape == (7, 768)


def test_weights_that_were_never_published_are_explained_in_one_line():
    with pytest.raises(WeightsNotFoundError, match=r'^davit_giant_fused: no weights were published') as error:
        timm.create_model('davit_giant_fused', pretrained=True, device='meta')
    assert '\n' not in str(error.value)


def test_published_weights_are_those_on_the_hub_of_timm():
    for size in SIZES[:3]:
        cfg, theirs = (timm.get_pretrained_cfg(name) for name in (f'davit_{size}_fused', f'davit_{size}'))
        for key in ('hf_hub_id', 'num_classes', 'input_size', 'interpolation', 'mean', 'std', 'first_conv'):
            assert getattr(cfg, key) == getattr(theirs, key), key
        assert cfg.crop_pct == 0.9  # the authors' code


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(embed_dims=(16, 32, 64)), 'embed_dims and depths: expected one entry for each stage, got 3 and 4'),
        (dict(head_dim=7), 'head_dim: expected a divisor of 16 channels, got 7'),
        (dict(window=0), 'window: expected a positive number of tokens'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model('davit_tiny_fused', **dict(SMALL, **arguments))
