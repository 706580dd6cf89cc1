"""TransNeXt: equality with the official models, weights, input sizes."""

import pytest
import timm
import torch
from check import check, official_state_dict
from torch.utils.flop_counter import FlopCounterMode

from attnzoo.backbones import transnext

SMALL = dict(embed_dims=(16, 16, 32, 32), depths=(1, 1, 2, 1), mlp_ratios=(2, 2, 2, 2), head_dim=8, num_classes=5)


def convert(state_dict):
    return transnext.checkpoint_filter_fn(state_dict, None)


def maps_of_stages(model, x):
    """Before and behind the norm of each stage."""
    maps = {}
    hooks = [
        stage.blocks.register_forward_hook(
            lambda _, inputs, out, name=f'stage{i}': maps.update({name: out.permute(0, 3, 1, 2)})
        )
        for i, stage in enumerate(model.stages, 1)
    ]
    normed = model.forward_intermediates(x, intermediates_only=True)
    for hook in hooks:
        hook.remove()
    return {**maps, **{f'stage{i}_norm': t for i, t in enumerate(normed, 1)}}


@pytest.mark.parametrize(
    'official',
    [
        'transnext_micro',
        pytest.param('transnext_tiny', marks=pytest.mark.slow),
        pytest.param('transnext_micro_AAAA', marks=pytest.mark.slow),
    ],
)
def test_equals_the_official_model(official):
    """Classifiers at the size of pre-training and another, and the dense prediction code in both of its modes."""

    def build(entry):
        return timm.create_model(official.lower(), interpolate_bias='interp' in entry['tag'])

    assert check(official, build, key_map=convert, features=maps_of_stages)


@pytest.mark.parametrize(
    'name, parameters, gmacs',
    [
        ('transnext_micro', 12_809_304, 2.6486),
        ('transnext_tiny', 28_258_960, 5.7111),
        ('transnext_small', 49_741_564, 10.2906),
        ('transnext_base', 89_721_496, 18.2999),
        ('transnext_micro_aaaa', 13_114_008, 3.3258),
    ],
)
def test_size_is_the_official_one(name, parameters, gmacs):
    model = timm.create_model(name, device='meta')
    assert sum(p.numel() for p in model.parameters()) == parameters
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.empty(1, *model.default_cfg['input_size'], device='meta'))
    # The MLP of the position biases takes other distances than the official one's: less than a hundredth of the whole.
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=0.006)


@pytest.mark.parametrize('tag, size', [('in1k', 224), ('in1k_384', 384)])
def test_a_tag_chooses_the_checkpoint_and_its_preprocessing(tag, size):
    cfg = timm.create_model(f'transnext_small.{tag}', device='meta').pretrained_cfg
    assert cfg['input_size'] == (3, size, size) and cfg['crop_mode'] == ('center' if size == 224 else 'squash')
    assert cfg['hf_hub_id'] == f'DaiShiResearch/transnext-small-{size}-1k' + ('' if size == 224 else '-ft-1k')
    assert cfg['hf_hub_filename'] == cfg['hf_hub_id'].split('/')[1].replace('-', '_') + '.pth'


def test_official_checkpoint_loads_from_a_file(tmp_path):
    weights = official_state_dict('transnext_micro')
    torch.save({'model': weights, 'epoch': 299}, tmp_path / 'transnext_micro_224_1k.pth')
    overlay = dict(file=str(tmp_path / 'transnext_micro_224_1k.pth'))
    model = timm.create_model('transnext_micro', pretrained=True, pretrained_cfg_overlay=overlay)
    expected, own = convert(weights), model.state_dict()
    assert own.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(own[key], value, rtol=0, atol=0)
    features = timm.create_model(
        'transnext_micro', pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, in_chans=1
    )
    torch.testing.assert_close(features.stem.conv.weight, weights['patch_embed1.proj.weight'].sum(1, keepdim=True))


def test_weights_of_dense_prediction_have_no_head():
    weights = official_state_dict('transnext_micro')
    dense = {f'module.{key}': x for key, x in weights.items() if not key.startswith('head.')}
    model = timm.create_model('transnext_micro', num_classes=0, device='meta')
    assert convert(dense).keys() == model.state_dict().keys()


def test_what_does_not_decay_is_named():
    names = timm.create_model('transnext_micro', **SMALL, device='meta').no_weight_decay()
    parts = {name.split('.attn.')[1] for name in names}
    assert {'temperature', 'query_embedding', 'relative_pos_bias_local', 'cpb.fc1.weight'} <= parts
    assert not any('learnable' in part or part.startswith(('q.', 'kv.', 'proj.')) for part in parts)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(pool_ratios=(8, 4, 2)), 'pool_ratios: expected one entry for each stage, got 4, 4, 4 and 3'),
        (dict(head_dim=7), 'head_dim: expected a divisor of 16 channels, got 7'),
        (dict(pool_ratios=(0, 4, 2, None)), 'pool_ratio: expected at least 1, got 0'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model('transnext_micro', **dict(SMALL, **arguments))
