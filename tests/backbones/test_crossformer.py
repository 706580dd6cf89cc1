"""CrossFormer and CrossFormer++: equality with the official models, weights, input sizes."""

import argparse
from unittest.mock import patch

import pytest
import timm
import torch
from check import check, official_state_dict
from torch.utils.flop_counter import FlopCounterMode

from attnzoo.backbones import WeightsNotFoundError, crossformer

SMALL = dict(embed_dims=(16, 32, 32, 64), depths=(2, 2, 4, 2), head_dim=8, num_classes=5)


def convert(state_dict):
    return crossformer.checkpoint_filter_fn(state_dict, None)


@pytest.mark.parametrize(
    'name',
    [
        'crossformer_tiny',
        pytest.param('crossformer_pp_small', marks=pytest.mark.slow),
        pytest.param('crossformer_small', marks=pytest.mark.slow),
        pytest.param('crossformer_pp_base', marks=pytest.mark.slow),
    ],
)
def test_equals_the_official_model(name):
    """Logits, gradients and maps at 224; maps of the dense code at 256 x 192, where the last stage is one group."""
    assert check(name, lambda entry: timm.create_model(name), key_map=convert)


@pytest.mark.parametrize(
    'name, parameters, gmacs',
    [
        ('crossformer_tiny', 27_776_794, 2.8574),
        ('crossformer_small', 30_657_394, 4.9061),
        ('crossformer_base', 51_971_554, 9.1594),
        ('crossformer_large', 91_971_184, 16.1075),
        ('crossformer_pp_small', 23_325_340, 4.428),
        ('crossformer_pp_base', 51_994_594, 9.5915),
        ('crossformer_pp_large', 92_001_904, 16.7215),
        ('crossformer_pp_huge', 95_962_944, 22.0001),
    ],
)
def test_size_is_the_official_one(name, parameters, gmacs):
    model = timm.create_model(name, device='meta')
    assert sum(p.numel() for p in model.parameters()) == parameters
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.empty(1, 3, 224, 224, device='meta'))
    macs = counter.get_total_flops() / 2 + projections_of_padding(model)
    assert macs / 1e9 == pytest.approx(gmacs, abs=1e-4)


def projections_of_padding(model):
    """Multiply-accumulates that the official code spends on padding: it pads in front of the projections, we behind."""
    total = 0
    for stage, size in zip(model.stages, (56, 28, 14, 7), strict=True):
        for block in stage.blocks:
            tile = block.attn.group * block.attn.interval
            padded = -(-size // tile) * tile if size > block.attn.group else size
            total += (padded**2 - size**2) * 4 * block.attn.dim**2
    return total


@pytest.fixture
def official_checkpoint(tmp_path):
    """A file as the authors' training script writes it, with the tables that older ones hold as buffers."""
    weights = official_state_dict('crossformer_tiny')
    for block in ('layers.0.blocks.0', 'layers.2.blocks.7'):
        weights[f'{block}.attn.biases'] = torch.zeros(169, 2)
        weights[f'{block}.attn.relative_position_index'] = torch.zeros(49, 49, dtype=torch.long)
        weights[f'{block}.attn_mask'] = torch.zeros(4, 49, 49)
    path = tmp_path / 'hub' / 'checkpoints' / 'crossformer-t.pth'
    path.parent.mkdir(parents=True)
    contents = dict(model=weights, optimizer={}, epoch=299, config=argparse.Namespace(lr=1e-3))
    torch.save(contents, path)
    return path


def test_official_checkpoint_loads_from_a_file(official_checkpoint):
    overlay = dict(file=str(official_checkpoint))
    model = timm.create_model('crossformer_tiny', pretrained=True, pretrained_cfg_overlay=overlay)
    expected, own = convert(official_state_dict('crossformer_tiny')), model.state_dict()
    assert own.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(own[key], value, rtol=0, atol=0)


def test_official_checkpoint_is_found_in_the_checkpoint_folder(official_checkpoint):
    with patch('torch.hub.get_dir', return_value=str(official_checkpoint.parents[1])):
        model = timm.create_model('crossformer_tiny', pretrained=True, num_classes=7, in_chans=1)
        features = timm.create_model('crossformer_tiny', pretrained=True, features_only=True)
    official = official_state_dict('crossformer_tiny')
    for i in range(4):  # every kernel of the stem sees the image
        weight = official[f'patch_embed.projs.{i}.weight']
        torch.testing.assert_close(model.stem.projs[i].weight, weight.sum(1, keepdim=True))
        torch.testing.assert_close(features.stem.projs[i].weight, weight)
    merge = official['layers.1.downsample.reductions.1.weight']
    torch.testing.assert_close(model.stages[2].downsample.projs[1].weight, merge)
    assert model.head.fc.weight.shape == (7, 512)


def test_missing_weights_are_explained_in_one_line(tmp_path):
    with patch('torch.hub.get_dir', return_value=str(tmp_path)), pytest.raises(WeightsNotFoundError) as error:
        timm.create_model('crossformer_pp_large', pretrained=True)
    message = str(error.value)
    assert '\n' not in message
    for part in ('Baidu', 'crossformer-pp-l.pth', 'https://github.com/cheerss/CrossFormer', str(tmp_path)):
        assert part in message


def test_a_checkpoint_of_another_variant_is_refused():
    model = timm.create_model('crossformer_tiny', device='meta')
    state_dict = convert(official_state_dict('crossformer_small'))
    with pytest.raises(RuntimeError, match=r'stem\.projs\.0\.weight: .*\[48, 3, 4, 4\].*\[32, 3, 4, 4\]'):
        model.load_state_dict(state_dict)


def test_our_own_state_dict_passes_the_filter():
    state_dict = timm.create_model('crossformer_pp_small', device='meta', num_classes=0).state_dict()
    assert convert(dict(state_dict)).keys() == state_dict.keys()


def test_cooling_layers_are_where_the_authors_have_them():
    """Behind every third block, never behind the last of a stage."""
    model = timm.create_model('crossformer_pp_huge', device='meta')
    cooled = [
        [i for i, block in enumerate(stage.blocks) if isinstance(block.cooling, crossformer.CoolingLayer)]
        for stage in model.stages
    ]
    assert cooled == [[2], [2], [2, 5, 8, 11, 14], []]


def test_stages_can_be_fewer():
    few = dict(embed_dims=(16, 32), depths=(1, 1), groups=(4, 4), intervals=(2, 1), head_dim=8, num_classes=3)
    assert timm.create_model('crossformer_tiny', **few)(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    with pytest.raises(ValueError, match='groups and intervals: expected one entry for each stage, got 2, 4, 4 and 4'):
        timm.create_model('crossformer_tiny', embed_dims=(16, 32))
