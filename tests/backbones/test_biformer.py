"""BiFormer: equality with the official models, weights, input sizes, tracing and export."""

import argparse
from unittest.mock import patch

import pytest
import timm
import torch
from check import check, official_state_dict
from torch.utils.flop_counter import FlopCounterMode

from attnzoo.backbones import WeightsNotFoundError, biformer

SMALL = dict(embed_dims=(16, 32, 32, 64), depths=(1, 1, 1, 1), head_dim=8, num_classes=5)


def convert(state_dict):
    return biformer.checkpoint_filter_fn(state_dict, None)


@pytest.mark.parametrize(
    'name',
    [
        'biformer_tiny',
        'biformer_stl_nchw',
        pytest.param('biformer_small', marks=pytest.mark.slow),
        pytest.param('biformer_stl', marks=pytest.mark.slow),
    ],
)
def test_equals_the_official_model(name):
    assert check(name, lambda entry: timm.create_model(name), key_map=convert)


@pytest.mark.parametrize(
    'name, parameters, gmacs',
    [
        ('biformer_tiny', 13_142_760, 2.2159),
        ('biformer_small', 25_536_232, 4.4636),
        ('biformer_base', 56_804_968, 9.759),
        ('biformer_stl', 28_372_552, 4.5739),
        ('biformer_stl_nchw', 28_372_552, 4.5739),
    ],
)
def test_size_is_the_official_one(name, parameters, gmacs):
    model = timm.create_model(name, device='meta')
    assert sum(p.numel() for p in model.parameters()) == parameters
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.empty(1, 3, 224, 224, device='meta'))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, abs=1e-4)


@pytest.fixture
def official_checkpoint(tmp_path):
    """A file as the authors' training script writes it: weights under "model", arguments and counters beside them."""
    path = tmp_path / 'hub' / 'checkpoints' / 'biformer_tiny_in1k.pth'
    path.parent.mkdir(parents=True)
    contents = dict(
        model=official_state_dict('biformer_tiny'), epoch=299, args=argparse.Namespace(model='biformer_tiny', lr=1e-3)
    )
    torch.save(contents, path)
    return path


def test_official_checkpoint_loads_from_a_file(official_checkpoint):
    model = timm.create_model(
        'biformer_tiny', pretrained=True, pretrained_cfg_overlay=dict(file=str(official_checkpoint))
    )
    assert_official(model)


def test_official_checkpoint_is_found_in_the_checkpoint_folder(official_checkpoint):
    with patch('torch.hub.get_dir', return_value=str(official_checkpoint.parents[1])):
        model = timm.create_model('biformer_tiny', pretrained=True, num_classes=7, in_chans=1)
        features = timm.create_model('biformer_tiny', pretrained=True, features_only=True)
    official = official_state_dict('biformer_tiny')
    stem = official['downsample_layers.0.0.weight']
    torch.testing.assert_close(model.stem.conv1.weight, stem.sum(1, keepdim=True))
    torch.testing.assert_close(model.stages[2].blocks[7].attn.proj.weight, official['stages.2.7.attn.wo.weight'])
    assert model.head.fc.weight.shape == (7, 512)
    torch.testing.assert_close(features.stem_conv1.weight, stem)


def assert_official(model):
    expected = convert(official_state_dict('biformer_tiny'))
    own = model.state_dict()
    assert own.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(own[key], value, rtol=0, atol=0)


def test_missing_weights_are_explained_in_one_line(tmp_path):
    with patch('torch.hub.get_dir', return_value=str(tmp_path)), pytest.raises(WeightsNotFoundError) as error:
        timm.create_model('biformer_small', pretrained=True)
    message = str(error.value)
    assert '\n' not in message
    for part in (
        'biformer_small_in1k.pth',
        'https://github.com/rayleizhu/BiFormer',
        str(tmp_path / 'checkpoints'),
        "pretrained_cfg_overlay=dict(file='biformer_small_in1k.pth')",
    ):
        assert part in message


def test_our_own_state_dict_passes_the_filter():
    state_dict = timm.create_model('biformer_stl', device='meta', num_classes=0).state_dict()
    assert convert(dict(state_dict)).keys() == state_dict.keys()


def test_stages_can_be_fewer():
    model = timm.create_model(
        'biformer_tiny',
        embed_dims=(16, 32),
        depths=(1, 1),
        mlp_ratios=(2, 2),
        head_dim=8,
        top_k=(2, None),
        num_classes=3,
    )
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    with pytest.raises(ValueError, match='expected one entry for each stage, got 3, 4, 4 and 4'):
        timm.create_model('biformer_tiny', embed_dims=(16, 32, 64))
