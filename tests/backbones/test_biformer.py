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


@pytest.mark.parametrize('name', ['biformer_tiny', 'biformer_stl', 'biformer_stl_nchw'])
@pytest.mark.parametrize('size', [(32, 32), (33, 47), (64, 224), (161, 97)])
@pytest.mark.parametrize('mask_padding', [False, True])
def test_any_input_size(name, size, mask_padding):
    torch.manual_seed(0)
    model = timm.create_model(name, mask_padding=mask_padding, **SMALL).eval()
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        out = model(x)
        assert out.shape == (2, 5) and out.isfinite().all()
        torch.testing.assert_close(model(x[1:]), out[1:], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), out, rtol=1e-4, atol=1e-5)


def test_features_are_maps_of_the_stated_width_and_stride():
    model = timm.create_model('biformer_tiny', features_only=True)
    maps = model(torch.randn(1, 3, 64, 96))
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    assert [tuple(t.shape) for t in maps] == [
        (1, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(model.feature_info.channels(), model.feature_info.reduction(), strict=True)
    ]


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


def trained_a_little(size):
    torch.manual_seed(0)
    model = timm.create_model('biformer_tiny', **SMALL)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval(), torch.randn(2, 3, *size)


def test_compiles_without_a_break_at_one_size_after_another():
    model, _ = trained_a_little((64, 64))
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    for size in ((64, 64), (57, 93)):
        x = torch.randn(2, 3, *size)
        expected = model(x)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
        mine = torch.autograd.grad(compiled(x).square().sum(), model.stem.conv1.weight)
        true = torch.autograd.grad(expected.square().sum(), model.stem.conv1.weight)
        torch.testing.assert_close(mine, true, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_compiles_with_inductor():
    model, x = trained_a_little((64, 64))
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), rtol=1e-4, atol=1e-5)


def test_exports_with_a_dynamic_batch(tmp_path):
    import onnxruntime

    model, x = trained_a_little((64, 96))
    batch = dict(dynamic_shapes=({0: torch.export.Dim('batch', min=1, max=64)},))
    exported = torch.export.export(model, (x,), **batch).module()
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False, **batch)
    program.save(tmp_path / 'model.onnx')
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx')
    for images in (x, x[:1], torch.cat((x, x, x))):
        expected = model(images)
        torch.testing.assert_close(exported(images), expected, rtol=1e-4, atol=1e-5)
        (out,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        torch.testing.assert_close(torch.from_numpy(out), expected, rtol=1e-4, atol=1e-5)
