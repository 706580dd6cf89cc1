"""The pyramid, on models of the shapes that families have (a stem among the features, a norm behind each stage) and on
small ones of the families themselves."""

import pytest
import timm
import torch
from small_models import SMALL_MODELS, small_model
from timm.layers import ClassifierHead, LayerNorm2d, NormMlpClassifierHead
from timm.models import FeatureListNet, group_parameters
from torch import nn

from attnzoo.backbones._pyramid import Pyramid, Stage, check_stages

DIMS = (8, 16, 16, 24)


class Block(nn.Module):
    def __init__(self, dim, dim_out=None):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim_out or dim, 3, stride=2 if dim_out else 1, padding=1)

    def forward(self, x):
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class WithStemTap(Pyramid):
    """As MaxViT: a stem that halves the image and is a feature, first blocks with the stride, a head with norm, MLP."""

    def __init__(self):
        stages = [
            Stage(nn.Identity(), [Block(dim, dim_out), Block(dim_out)])
            for dim, dim_out in zip((8, *DIMS), DIMS, strict=False)
        ]
        head = NormMlpClassifierHead(24, 10, hidden_size=32)
        stem = nn.Conv2d(3, 8, 3, 2, 1)
        super().__init__(stem, stages, nn.Identity(), head, DIMS, in_chans=3, num_classes=10, stem_channels=8)


class WithStageNorms(Pyramid):
    """As TransNeXt: a stage begins with its patch embedding and ends with its norm."""

    def __init__(self):
        stages = []
        for i, dim in enumerate(DIMS):
            merge = nn.Sequential(nn.Conv2d(DIMS[i - 1], dim, 3, 2, 1), LayerNorm2d(dim)) if i else nn.Identity()
            stages.append(Stage(merge, [Block(dim), Block(dim)], nn.LayerNorm(dim)))
        head = ClassifierHead(24, 10)
        super().__init__(nn.Conv2d(3, 8, 7, 4, 3), stages, nn.Identity(), head, DIMS, in_chans=3, num_classes=10)


class WithFinalNorm(Pyramid):
    """As CrossFormer: one norm, in front of the head."""

    def __init__(self):
        stages = [Stage(nn.Conv2d(8, dim, 2, 2) if i else nn.Identity(), [Block(dim)]) for i, dim in enumerate((8, 16))]
        head = ClassifierHead(16, 10)
        super().__init__(nn.Conv2d(3, 8, 4, 4), stages, LayerNorm2d(16), head, (8, 16), in_chans=3, num_classes=10)


@pytest.fixture(params=[WithStemTap, WithStageNorms, WithFinalNorm])
def family(request):
    return request.param


@pytest.fixture
def model(family):
    torch.manual_seed(0)
    return family().eval()


@pytest.fixture
def x():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def test_features_have_the_stated_width_and_stride(model, x):
    final, maps = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x))
    assert [(t.shape[1], 64 // t.shape[2], 96 // t.shape[3]) for t in maps] == [
        (info['num_chs'], info['reduction'], info['reduction']) for info in model.feature_info
    ]
    listed = FeatureListNet(model, out_indices=range(len(maps)), flatten_sequential=True)(x)
    for mine, theirs in zip(maps, listed, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_only_the_last_map_gets_the_final_norm(model, x):
    plain = model.forward_intermediates(x, intermediates_only=True)
    final, normed = model.forward_intermediates(x, norm=True)
    torch.testing.assert_close(normed[:-1], plain[:-1])
    torch.testing.assert_close(normed[-1], final)
    assert torch.equal(plain[-1], final) == isinstance(model.norm, nn.Identity)


@pytest.mark.parametrize('chosen', [0, 1, -1])
def test_pruned_and_early_stopped_models_give_the_same_maps(family, model, x, chosen):
    index = range(len(model.feature_info))[chosen]
    expected = model.forward_intermediates(x, intermediates_only=True)[index]
    (early,) = model.forward_intermediates(x, [index], stop_early=True, intermediates_only=True)
    pruned = family().eval()
    pruned.load_state_dict(model.state_dict())
    indices = pruned.prune_intermediate_layers([index])
    (kept,) = pruned.forward_intermediates(x, indices, intermediates_only=True)
    torch.testing.assert_close((early, kept), (expected, expected))
    assert pruned.num_features == model.feature_info[index]['num_chs']
    assert len(pruned.stages) == (index if isinstance(model, WithStemTap) else index + 1)
    assert pruned.get_classifier() is not None and not list(pruned.get_classifier().parameters())


def test_layer_decay_counts_blocks(model):
    """A stage's downsampling counts with its first block, a norm with what lies before it."""
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    names = [name for name, _ in model.named_parameters()]
    assert [groups[name] for name in names] == sorted(groups[name] for name in names)
    blocks = sum(len(stage.blocks) for stage in model.stages)
    assert len({groups[name] for name in names}) == 1 + blocks + 1  # stem, blocks, head
    for i, stage in enumerate(model.stages):
        of_block = [groups[f'stages.{i}.blocks.{j}.conv.weight'] for j in range(len(stage.blocks))]
        for part, block in (('downsample', 0), ('norm', -1)):
            for name, _ in getattr(stage, part).named_parameters(prefix=f'stages.{i}.{part}'):
                assert groups[name] == of_block[block]
    for name, _ in model.norm.named_parameters(prefix='norm'):
        assert groups[name] == of_block[-1]


def test_scripts(model, x):
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))


def test_bad_arguments_are_named(model, x):
    with pytest.raises(ValueError, match="output_fmt: expected 'NCHW', got 'NHWC'"):
        model.forward_intermediates(x, output_fmt='NHWC')
    with pytest.raises(ValueError, match='dims and depths: expected one entry for each stage, got 2 and 3'):
        check_stages(dims=(8, 16), depths=(1, 1, 1))


@pytest.mark.parametrize('name', SMALL_MODELS)
def test_checkpointing_runs_every_block_again_and_changes_no_gradient(name):
    model, x = small_model(name), torch.randn(2, 3, 64, 64)
    gradients, runs = [], []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        blocks = [block for stage in model.stages for block in stage.blocks]
        calls = []
        handles = [block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1)) for block in blocks]
        gradients.append(torch.autograd.grad(model(x).square().sum(), list(model.parameters())))
        runs.append(len(calls) / len(blocks))
        for handle in handles:
            handle.remove()
    assert runs == [1, 2]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize('name', SMALL_MODELS)
def test_weights_can_be_made_after_the_meta_device(name):
    model = timm.create_model(name, device='meta', **SMALL_MODELS[name]).to_empty(device='cpu').eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.fill_(float('nan'))
    model.init_weights()
    assert model(torch.randn(1, 3, 64, 64)).isfinite().all()
