"""`ZooBackbone`: any model of timm's registry as a backbone of mmdet."""

import pytest

pytest.importorskip('mmdet', reason="needs mmdet: pip install 'attnzoo[mmdet]'")

import timm
import torch
from mmdet.registry import MODELS
from small_models import SMALL_MODELS
from torch import nn

from attnzoo.mmdet import ZooBackbone
from attnzoo.train.errors import UserError

SMALL = {
    name: {key: value for key, value in kwargs.items() if key != 'num_classes'} for name, kwargs in SMALL_MODELS.items()
}


@pytest.mark.parametrize('name', SMALL)
def test_our_models_give_a_map_of_each_stride_for_images_of_any_size(name):
    torch.manual_seed(0)
    backbone = MODELS.build({'type': 'ZooBackbone', 'model': name, 'norm': True, 'kwargs': SMALL[name]})
    maps = backbone(torch.randn(1, 3, 96, 160))
    widths = SMALL[name]['embed_dims']
    assert [tuple(x.shape) for x in maps] == [
        (1, width, 96 // stride, 160 // stride) for width, stride in zip(widths, (4, 8, 16, 32), strict=True)
    ]
    for x in maps:  # each normed
        torch.testing.assert_close(x.mean(1), torch.zeros_like(x.mean(1)), atol=1e-5, rtol=0)
    sum(x.square().sum() for x in maps).backward()
    assert all(x.grad is not None for x in backbone.parameters())


@pytest.mark.parametrize('name', ['resnet10t', 'swin_tiny_patch4_window7_224', 'maxvit_tiny_fused'])
def test_levels_are_chosen_by_stride(name):
    """timm counts the maps of these from different places on, and some have one of stride 2 in front."""
    kwargs = {'strict_img_size': False} if name.startswith('swin') else SMALL.get(name, {})
    backbone = ZooBackbone(name, (8, 32), kwargs=kwargs)
    maps = backbone(torch.randn(1, 3, 64, 96))
    assert [tuple(x.shape[2:]) for x in maps] == [(8, 12), (2, 3)]
    assert [x.shape[1] for x in maps] == backbone.net.feature_info.channels()


def test_frozen_stages_and_batch_norms_stay_as_they_are():
    kwargs = SMALL['biformer_tiny'] | {'drop_path_rate': 0.5}
    backbone = ZooBackbone('biformer_tiny', frozen_stages=2, norm_eval=True, kwargs=kwargs).train()
    frozen = {name for name, x in backbone.named_parameters() if not x.requires_grad}
    assert frozen == {
        name
        for name, _ in backbone.named_parameters()
        if name.startswith(('net.model.stem.', 'net.model.stages.0.', 'net.model.stages.1.'))
    }
    model = backbone.net.model
    assert not any(module.training for part in (model.stem, *model.stages[:2]) for module in part.modules())
    assert model.stages[2].blocks[0].drop_path1.training
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and not any(module.training for module in norms)
    thawed = ZooBackbone('biformer_tiny', kwargs=kwargs).train()
    assert all(x.requires_grad for x in thawed.parameters()) and all(module.training for module in thawed.modules())
    stem_only = ZooBackbone('resnet10t', frozen_stages=0)
    assert {name.split('.')[2] for name, x in stem_only.named_parameters() if not x.requires_grad} == {'conv1', 'bn1'}


def test_weights_stay_through_mmengines_initialisation(tmp_path):
    """mmdet calls `init_weights` on whole detectors."""
    torch.manual_seed(0)
    source = timm.create_model('biformer_tiny', **SMALL_MODELS['biformer_tiny'])
    overlay = {'state_dict': source.state_dict(), 'num_classes': 5}
    kwargs = SMALL['biformer_tiny'] | {'pretrained_cfg_overlay': overlay}
    backbone = ZooBackbone('biformer_tiny', pretrained=True, kwargs=kwargs)
    backbone.init_weights()
    for name, value in backbone.net.model.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name


def test_checkpointing_and_stochastic_depth_reach_the_model():
    backbone = ZooBackbone('biformer_tiny', with_cp=True, drop_path_rate=0.3, kwargs=SMALL['biformer_tiny'])
    assert all(stage.grad_checkpointing for stage in backbone.net.model.stages)
    assert backbone.net.model.stages[3].blocks[0].drop_path1.drop_prob == pytest.approx(0.3)


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(model='biformer_tinny'), "ZooBackbone: no model 'biformer_tinny'; did you mean 'biformer_tiny'"),
        (
            dict(model='biformer_tiny', out_reductions=(2, 4)),
            r'ZooBackbone: out_reductions=\[2, 4\]: biformer_tiny has no map of stride 2, but of 4, 8, 16, 32',
        ),
        (dict(model='biformer_tiny', kwargs={'depth': 3}), 'ZooBackbone: kwargs do not fit biformer_tiny: .*depth'),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        MODELS.build({'type': 'ZooBackbone', **settings})
