"""MaxViT: equality with timm's models of the official weights, checkpoints, input sizes."""

import pytest
import timm
import torch
from check import check, official_state_dict, value
from safetensors.torch import save_file
from timm.models import maxxvit
from torch.utils.flop_counter import FlopCounterMode

from attnzoo.backbones import maxvit
from attnzoo.blocks import GridAttention

NAMES = [f'maxvit_{size}_fused' for size in ('tiny', 'small', 'base', 'large', 'xlarge')]
SMALL = dict(stem_dim=16, embed_dims=(16, 32), depths=(1, 2), head_dim=8, num_classes=5)
TIMM_SMALL = dict(
    stem_width=16, embed_dim=(16, 32), depths=(1, 2), head_hidden_size=32, transformer_dim_head=8, num_classes=5
)


def small(**arguments):
    return timm.create_model('maxvit_tiny_fused', **SMALL, **arguments)


def timm_small(pixels=224, **arguments):
    return timm.create_model(f'maxvit_tiny_tf_{pixels}', **TIMM_SMALL, **arguments)


def fill(model):
    """Weights and statistics by the golden rule, so that every term counts."""
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.from_numpy(value(key, tuple(tensor.shape))))
    return model.eval()


def windows(model):
    return {module.window for module in model.modules() if isinstance(module, GridAttention)}


@pytest.mark.parametrize('size', ['tiny', pytest.param('small', marks=pytest.mark.slow)])
def test_equals_the_official_model(size):
    sizes = {'img256_window8': 256, 'img256x192_window8x6': (256, 192)}

    def build(entry):
        return timm.create_model(f'maxvit_{size}_fused', img_size=sizes.get(entry['tag'], 224))

    def maps(model, x):
        features = model.forward_intermediates(x, intermediates_only=True)
        return dict(zip(('stem', 'stage1', 'stage2', 'stage3', 'stage4'), features, strict=True))

    assert check(f'maxvit_{size}_tf_224', build, features=maps)


@pytest.mark.parametrize(
    'name, parameters, gmacs',
    [
        ('maxvit_tiny_fused', 30_916_528, 5.5518),
        ('maxvit_small_fused', 68_927_956, 11.5891),
        ('maxvit_base_fused', 119_467_708, 23.9223),
        ('maxvit_large_fused', 211_785_560, 43.5197),
        ('maxvit_xlarge_fused', 474_951_952, 97.2546),
    ],
)
def test_size_is_the_official_one(name, parameters, gmacs):
    model = timm.create_model(name, device='meta', num_classes=1000)
    assert sum(p.numel() for p in model.parameters()) == parameters
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.empty(1, 3, 224, 224, device='meta'))
    assert counter.get_total_flops() / 2e9 + lookups(model) == pytest.approx(gmacs, abs=1e-4)


def lookups(model):
    """GMACs of what timm does to read biases from a table: products with one-hot matrices, one an axis."""
    total = 0
    for module in model.modules():
        if isinstance(module, GridAttention):
            (height, width), heads = module.window, module.num_heads
            rows, columns = 2 * height - 1, 2 * width - 1
            total += heads * (height**2 * rows * columns + height**2 * width**2 * columns)
    return total / 1e9


def test_tags_are_those_of_timm():
    """Every published checkpoint under its name on timm's hub, with timm's preprocessing, built for its size."""
    published = set(timm.list_models('maxvit_*_tf_*', include_tags=True))
    for name in (name for base in NAMES for name in timm.list_models(f'{base}.*', include_tags=True)):
        model = timm.create_model(name, device='meta')
        cfg = model.pretrained_cfg
        hub = cfg['hf_hub_id'].removeprefix('timm/')
        published.remove(hub)
        assert hub.startswith(name.split('_fused')[0]) and hub.split('.')[1] in name
        theirs = timm.get_pretrained_cfg(hub).to_dict()
        for key in ('num_classes', 'input_size', 'crop_pct', 'interpolation', 'mean', 'std', 'first_conv', 'license'):
            assert cfg[key] == theirs[key], (name, key)
        assert cfg['crop_mode'] == theirs.get('crop_mode', 'center')
        _, *size = cfg['input_size']
        assert model.num_classes == cfg['num_classes'] and model.img_size == tuple(size)
        assert windows(model) == {cfg['pool_size']} == {tuple(n // 32 for n in size)}
    assert not published


@pytest.mark.parametrize('size', ['tiny', 'large'])
def test_parameters_are_those_of_timm(size):
    ours = timm.create_model(f'maxvit_{size}_fused', device='meta').state_dict()
    theirs = timm.create_model(f'maxvit_{size}_tf_224', device='meta').state_dict()
    assert [(key, x.shape) for key, x in ours.items()] == [(key, x.shape) for key, x in theirs.items()]


@pytest.mark.parametrize('tag, pixels', [('in1k', 224), ('in1k_384', 384), ('in1k_512', 512)])
def test_equals_timm_at_every_published_size(tag, pixels):
    theirs = fill(timm_small(pixels))
    ours = timm.create_model(f'maxvit_tiny_fused.{tag}', **SMALL).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, pixels, pixels)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('size', [384, (256, 192), 64])
def test_tables_of_a_checkpoint_are_resized_as_by_timm(size):
    given, model = fill(timm_small()).state_dict(), small(img_size=size)
    theirs = maxxvit.checkpoint_filter_fn(dict(given), timm_small(img_size=size))
    wrapped = {'state_dict': {f'module.{key}': tensor for key, tensor in given.items()}}
    model.load_state_dict(maxvit.checkpoint_filter_fn(wrapped, model))
    for key, tensor in theirs.items():
        torch.testing.assert_close(model.state_dict()[key], tensor, rtol=0, atol=0)


@pytest.mark.parametrize('size', [384, (256, 192), 64, 224])
def test_input_size_is_changed_as_by_timm(size):
    """Tables, their grids and what is recorded of the model; also on the way back, and on frozen weights."""
    theirs, ours = fill(timm_small()), small().eval()
    ours.load_state_dict(theirs.state_dict())
    ours.requires_grad_(False)
    for img_size in (size, 224):
        theirs.set_input_size(img_size)
        ours.set_input_size(img_size)
        assert not any(p.requires_grad for p in ours.parameters())
        for key, tensor in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], tensor, rtol=0, atol=0)
        height, width = theirs.img_size
        assert ours.img_size == (height, width) and windows(ours) == {(height // 32, width // 32)}
        x = torch.randn(1, 3, height, width)
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_window_can_be_chosen():
    model = small(window_size=(4, 5))
    assert windows(model) == {(4, 5)}
    model.set_input_size(window_size=3)
    assert windows(model) == {(3, 3)} and model.img_size == (224, 224)
    model.to(torch.bfloat16).set_input_size(64)
    assert windows(model) == {(2, 2)} and {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(torch.randn(1, 3, 64, 64, dtype=torch.bfloat16)).isfinite().all()


def test_timm_checkpoint_loads_from_a_file(tmp_path):
    weights = official_state_dict('maxvit_tiny_tf_224')
    save_file(weights, tmp_path / 'model.safetensors')
    overlay = dict(file=str(tmp_path / 'model.safetensors'))
    model = timm.create_model('maxvit_tiny_fused', pretrained=True, pretrained_cfg_overlay=overlay)
    own = model.state_dict()
    assert own.keys() == weights.keys()
    for key, tensor in weights.items():
        torch.testing.assert_close(own[key], tensor, rtol=0, atol=0)

    other = timm.create_model(
        'maxvit_tiny_fused.in1k_384', pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7, in_chans=1
    )
    torch.testing.assert_close(other.stem.conv1.weight, weights['stem.conv1.weight'].sum(1, keepdim=True))
    assert other.head.fc.weight.shape == (7, 512) and windows(other) == {(12, 12)}
    features = timm.create_model(
        'maxvit_tiny_fused', pretrained=True, pretrained_cfg_overlay=overlay, features_only=True
    )
    torch.testing.assert_close(features.stem.conv2.weight, weights['stem.conv2.weight'])


def test_checkpoint_of_another_variant_is_refused():
    given = timm.create_model('maxvit_small_tf_224', device='meta').state_dict()
    model = timm.create_model('maxvit_tiny_fused', device='meta', img_size=256)
    with pytest.raises(RuntimeError, match=r'stages\.0\.blocks\.0\.conv\.conv1_1x1\.weight'):
        model.load_state_dict(maxvit.checkpoint_filter_fn(given, model))


def test_our_own_state_dict_passes_the_filter():
    model = timm.create_model('maxvit_tiny_fused', device='meta', num_classes=0)
    state_dict = model.state_dict()
    assert maxvit.checkpoint_filter_fn(dict(state_dict), model).keys() == state_dict.keys()


def test_maps_stay_in_channels_last_memory():
    """From the image on: no map is brought into another order on its way."""
    model = small().eval()
    orders = []

    def note(module, arguments):
        x = arguments[0]
        if x.ndim == 4 and min(x.shape[1:]) > 1:
            first = isinstance(module, (torch.nn.Conv2d, torch.nn.BatchNorm2d))
            orders.append(x.is_contiguous(memory_format=torch.channels_last) if first else None)
            orders.append(x.is_contiguous() if isinstance(module, (torch.nn.LayerNorm, torch.nn.Linear)) else None)

    for module in model.modules():
        if not isinstance(module, maxvit.Stem):
            module.register_forward_pre_hook(note)
    model.stages(model.stem(torch.randn(2, 3, 224, 224)))
    assert orders.count(True) > 20 and orders.count(False) == 0


def test_weights_are_drawn_as_the_authors_do():
    torch.manual_seed(0)
    model = timm.create_model('maxvit_tiny_fused', num_classes=10)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.25), name
        elif name.endswith('bias'):
            assert not parameter.any(), name


def test_bias_tables_do_not_decay():
    model = small(device='meta')
    assert sum('bias_table' in name for name in model.no_weight_decay()) == 2 * 3


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(img_size=31), 'img_size: expected at least 32 pixels along each axis, got 31'),
        (dict(window_size=(7, 0)), r'window_size: expected at least one token along each axis, got \(7, 0\)'),
        (dict(embed_dims=(16, 32, 64)), 'embed_dims and depths: expected one entry for each stage, got 3 and 2'),
        (dict(head_dim=7), 'head_dim: expected a divisor of 16 channels, got 7'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model('maxvit_tiny_fused', **dict(SMALL, **arguments))
