"""Attention ResNets: where the gates are, and files of their authors, as far as can be told without one."""

import math

import pytest
import timm
import torch
import torchvision
from check import load_golden
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from attnzoo.backbones import WeightsNotFoundError, official_file
from attnzoo.backbones.resnet import GATES, checkpoint_filter_fn

SMALL = dict(layers=(1, 1, 1, 2), channels=(16, 32, 32, 64), num_classes=5)
NAMES = [f'resnet{depth}_{gate}' for gate in GATES for depth in (18, 50, 101)]


def small_model(gate, depth=18):
    torch.manual_seed(0)
    model = timm.create_model(f'resnet{depth}_{gate}', **SMALL)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and name.endswith('weight'):
            nn.init.normal_(parameter, 1.0, 0.2)  # some are zero at first
    return model.eval()


@pytest.mark.parametrize('depth, gate', [(18, 'cbam'), (50, 'triplet'), (50, 'fca'), (18, 'ela')])
def test_equals_torchvision_with_a_gate_behind_the_last_norm_of_each_block(depth, gate):
    """Where the authors' code has it, too: they start from torchvision's ResNet, or its copy."""
    torch.manual_seed(0)
    ours = timm.create_model(f'resnet{depth}_{gate}').double().eval()
    theirs = getattr(torchvision.models, f'resnet{depth}')().double().eval()
    last = 'bn2' if depth == 18 else 'bn3'
    for stage in ('layer1', 'layer2', 'layer3', 'layer4'):
        for mine, block in zip(getattr(ours, stage), getattr(theirs, stage), strict=True):
            setattr(block, last, nn.Sequential(getattr(block, last), mine.se))
    for name, tensor in theirs.state_dict().items():
        if tensor.is_floating_point() and 'dct_layer' not in name:
            positive = name.endswith(('running_var', 'norm.weight'))
            nn.init.uniform_(tensor, 0.5, 1.5) if positive else nn.init.normal_(tensor, std=0.1)
    weights = theirs.state_dict().items()
    ours.load_state_dict({key.replace(f'{last}.0.', f'{last}.').replace(f'{last}.1.', 'se.'): x for key, x in weights})
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    'name, attribute, block',
    [
        ('resnet50_cbam', 'cbam', 'cbam'),
        ('resnet18_triplet', 'triplet_attention', 'triplet_attention_imagenet_keys'),
        ('resnet50_triplet', 'triplet_attention', 'triplet_attention_imagenet_keys'),
        ('resnet50_fca', 'att', 'fca_low8'),
        ('resnet101_fca', 'att', 'fca_low8'),
    ],
)
def test_official_names_are_ours_once_filtered(name, attribute, block):
    """Names of torchvision's ResNet and of the authors' modules, as wrapped models are saved."""
    trunk = getattr(torchvision.models, name.partition('_')[0])()
    official = list(trunk.state_dict())
    for path, module in trunk.named_modules():
        if path.count('.') == 1 and path.startswith('layer'):
            official += [f'{path}.{attribute}.{key}' for key, *_ in load_golden(block)[0]['manifest']]
            assert type(module).__name__ in ('BasicBlock', 'Bottleneck')
    found = checkpoint_filter_fn({'state_dict': {f'module.{key}': torch.zeros(()) for key in official}}, None)
    assert found.keys() == timm.create_model(name, device='meta').state_dict().keys()


def test_an_official_file_loads(tmp_path):
    source = timm.create_model('resnet50_cbam')
    weights = {key.replace('.se.', '.cbam.'): x for key, x in source.state_dict().items()}
    torch.save({'state_dict': {f'module.{key}': x for key, x in weights.items()}, 'epoch': 99}, tmp_path / 'best.pth')
    overlay = dict(file=str(tmp_path / 'best.pth'))
    model = timm.create_model('resnet50_cbam', pretrained=True, pretrained_cfg_overlay=overlay)
    for key, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key
    other = timm.create_model(
        'resnet50_cbam', pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7, in_chans=1
    )
    torch.testing.assert_close(other.conv1.weight, source.conv1.weight.sum(1, keepdim=True))
    assert other.fc.weight.shape == (7, 2048)


@pytest.mark.parametrize('name', NAMES)
def test_weights_are_listed_or_said_not_to_be(name):
    cfg = timm.get_pretrained_cfg(name)
    file = official_file(f'{name}.{cfg.tag}')
    assert (file is None) == (not cfg.tag) and (file is None or file.status == 'listed')
    if file is None:
        with pytest.raises(WeightsNotFoundError, match=rf'^{name}: no weights were published'):
            timm.create_model(name, pretrained=True, device='meta')


@pytest.mark.parametrize('gate', GATES)
def test_gates_of_positions_are_one_half_at_first(gate):
    """As their authors begin, so that the norm's gradient is what opens them."""
    model = timm.create_model(f'resnet18_{gate}', **SMALL)
    norms = [(name, x) for name, x in model.named_parameters() if '.se.' in name and name.endswith('bn.weight')]
    zero = [name for name, x in norms if not x.any()]
    at = {'cbam': 'SpatialGate.spatial', 'triplet': 'hw.conv'}.get(gate)
    assert len(zero) == (0 if at is None else 5) and all(at in name for name in zero)


@pytest.mark.parametrize('gate', GATES)
@torch.no_grad()
def test_small_models_in_graphs_and_of_any_size(gate):
    torch.compiler.reset()
    model = small_model(gate, depth=50 if gate == 'fca' else 18)
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    extractor = create_feature_extractor(model, ['act1', 'layer1', 'layer2', 'layer3', 'layer4', 'fc'])
    for size in ((64, 64), (32, 45)):
        x = torch.randn(2, 3, *size)
        expected, maps = model.forward_intermediates(x)
        assert [tuple(x.shape[2:]) for x in maps] == [tuple(math.ceil(n / 2**i) for n in size) for i in range(1, 6)]
        features = extractor(x)
        torch.testing.assert_close([features[f'layer{i}'] for i in range(1, 5)], maps[1:])
        logits = model.forward_head(expected)
        last = model(x.to(memory_format=torch.channels_last))
        for found in (model(x), compiled(x), features['fc'], last):
            torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('gate', GATES)
def test_training_step(gate):
    """With and without checkpointing; gradients have the strides of their parameters, as DDP wants them."""
    x, gradients = torch.randn(4, 3, 64, 48), []
    for checkpointing in (False, True):
        model = small_model(gate).train()
        model.set_grad_checkpointing(checkpointing)
        model(x).square().mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.stride() == parameter.stride(), name
        gradients.append([parameter.grad for parameter in model.parameters()])
        if not checkpointing:
            counted = [x for name, x in model.named_buffers() if name.endswith('num_batches_tracked')]
            assert counted and all(count == 1 for count in counted)
    torch.testing.assert_close(*gradients)


def test_features_have_five_reductions():
    model = timm.create_model('resnet18_cbam', features_only=True, **SMALL)
    assert model.feature_info.reduction() == [2, 4, 8, 16, 32]
    assert [x.shape[1] for x in model(torch.randn(1, 3, 64, 64))] == [64, 16, 32, 32, 64]


def test_filters_fit_the_maps_of_an_image_of_224():
    model = timm.create_model('resnet50_fca', device='meta')
    sizes = [getattr(model, f'layer{i}')[0].se.dct_layer.weight.shape for i in range(1, 5)]
    assert sizes == [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(gate='se'), "gate: expected one of 'cbam', 'triplet', 'fca', 'ela', got 'se'"),
        (dict(block='wide'), "block: expected 'basic' or 'bottleneck', got 'wide'"),
        (dict(layers=(1, 1)), 'layers and channels: expected four stages, got 2 and 4'),
        (dict(gate_args=dict(reduction_ratio=100)), 'reduction_ratio: expected 1 to 64, .*, got 100'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model('resnet18_cbam', **arguments)
