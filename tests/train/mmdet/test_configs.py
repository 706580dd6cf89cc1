"""The packaged configs of mmdet: each builds, trains, and is the published recipe."""

import pytest

pytest.importorskip('mmdet', reason="needs mmdet: pip install 'attnzoo[mmdet]'")

import attnzoo.mmdet  # noqa: F401  (before mmdet: it brings what mmcv lacks)

# isort: split

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import nn

from attnzoo.train.mmdet.launcher import packaged

# Millions of parameters as the authors state them.
PUBLISHED = {
    'cascade_mask_rcnn_3x_crossformer_small': 88.0,
    'dino_4scale_transnext_tiny': 47.8,
    'dino_5scale_transnext_base': 110,
    'dino_5scale_transnext_small': 69.6,
    'dino_5scale_transnext_tiny': 48.1,
    'mask_rcnn_1x_crossformer_base': 71.5,
    'mask_rcnn_1x_crossformer_small': 50.2,
    'mask_rcnn_1x_davit_base': 107.3,
    'mask_rcnn_1x_davit_small': 69.2,
    'mask_rcnn_1x_davit_tiny': 47.8,
    'mask_rcnn_1x_transnext_base': 109.2,
    'mask_rcnn_1x_transnext_small': 69.3,
    'mask_rcnn_1x_transnext_tiny': 47.9,
    'mask_rcnn_3x_crossformer_base': 71.5,
    'mask_rcnn_3x_crossformer_small': 50.2,
    'mask_rcnn_3x_davit_base': 107.3,
    'mask_rcnn_3x_davit_small': 69.2,
    'mask_rcnn_3x_davit_tiny': 47.8,
    'retinanet_1x_crossformer_base': 62.1,
    'retinanet_1x_crossformer_small': 40.8,
    'retinanet_1x_davit_base': 98.5,
    'retinanet_1x_davit_small': 59.9,
    'retinanet_1x_davit_tiny': 38.5,
}
NOT_PUBLISHED = {
    'mask_rcnn_1x_biformer_base',
    'mask_rcnn_1x_biformer_small',
    'retinanet_1x_biformer_base',
    'retinanet_1x_biformer_small',
}


@pytest.fixture(autouse=True)
def scope() -> None:
    init_default_scope('mmdet')
    torch.manual_seed(0)


def load(name: str) -> Config:
    config = Config.fromfile(packaged()[name])
    config.model.backbone.pretrained = False
    return config


def build_on_meta(config: Config) -> nn.Module:
    with torch.device('meta'):
        return MODELS.build(config.model)


@pytest.mark.parametrize('name', sorted({*PUBLISHED, *NOT_PUBLISHED}))
def test_every_config_builds_with_the_published_number_of_parameters(name):
    model = build_on_meta(load(name))
    if name in PUBLISHED:
        millions = sum(x.numel() for x in model.parameters()) / 1e6
        assert abs(millions - PUBLISHED[name]) < 0.1, millions


def test_all_configs_are_known_here_and_state_their_ap():
    configs = packaged()
    assert set(configs) == {*PUBLISHED, *NOT_PUBLISHED}
    for path in configs.values():
        first = path.read_text().split('_base_')[0]
        assert 'box AP' in first and 'github.com/' in first, path


def groups(name: str) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter."""
    config = load(name)
    config.optim_wrapper.pop('loss_scale', None)
    config.optim_wrapper.type = 'OptimWrapper'
    model = build_on_meta(config)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults['betas'] == (0.9, 0.999)
    return {
        names[id(parameter)]: (round(group['lr'], 10), round(group['weight_decay'], 10))
        for group in optimizer.param_groups
        for parameter in group['params']
    }


def test_the_optimizer_decays_what_the_authors_decay():
    for name in ('mask_rcnn_1x_crossformer_small', 'retinanet_1x_crossformer_base', 'retinanet_1x_biformer_small'):
        assert set(groups(name).values()) == {(1e-4, 1e-4)}
    for name in ('mask_rcnn_1x_davit_tiny', 'retinanet_1x_davit_tiny'):
        assert set(groups(name).values()) == {(1e-4, 0.05)}

    biformer = groups('mask_rcnn_1x_biformer_small')
    assert set(biformer.values()) == {(1e-4, 0.05), (1e-4, 0.0)}
    free = [key for key, (_, decay) in biformer.items() if not decay]
    # Two norms a block and one a map, weight and bias each; the batch norms between the stages are not among them.
    assert len(free) == 2 * (2 * (4 + 4 + 18 + 4) + 4)
    assert not any('stem' in key or 'downsample' in key for key in free)

    transnext = groups('mask_rcnn_1x_transnext_tiny')
    free = {key.rsplit('stages.', 1)[-1].split('.', 3)[-1] for key, (_, decay) in transnext.items() if not decay}
    assert {'attn.temperature', 'attn.query_embedding', 'attn.cpb.fc1.weight', 'norm1.bias'} <= free
    assert not any(key.endswith(('q.weight', 'learnable_tokens', 'fc1.bias')) and 'cpb' not in key for key in free)


def test_dino_has_the_rates_of_the_authors():
    of_the_last_stage = ('stages.3.downsample.', 'stages.3.norm.')
    not_decayed = ('.bias', 'norm', 'cpb', 'temperature', 'query_embedding', 'relative_pos_bias_local')
    for key, (rate, decay) in groups('dino_5scale_transnext_tiny').items():
        if key.startswith('backbone.'):
            assert rate == (1e-4 if any(name in key for name in of_the_last_stage) else 1e-5), key
            assert decay == (0.0 if any(name in key for name in not_decayed) else 0.05), key
        else:
            assert rate == 1e-4, key
    config = load('dino_4scale_transnext_tiny')
    assert config.optim_wrapper.clip_grad.max_norm == 0.1
    assert config.optim_wrapper.accumulative_counts * config.train_dataloader.batch_size == 2


def test_schedules_and_sizes():
    one, three = load('mask_rcnn_1x_crossformer_small'), load('cascade_mask_rcnn_3x_crossformer_small')
    assert one.train_cfg.max_epochs == 12 and one.param_scheduler[1].milestones == [8, 11]
    assert three.train_cfg.max_epochs == 36 and three.param_scheduler[1].milestones == [27, 33]
    for config in (one, three):
        assert (config.param_scheduler[0].end, config.param_scheduler[0].start_factor) == (500, 0.001)
        assert config.train_dataloader.batch_size == 2
    assert [x.type for x in one.train_dataloader.dataset.pipeline][2:4] == ['Resize', 'RandomFlip']
    choices = three.train_dataloader.dataset.pipeline[3]
    assert choices.type == 'RandomChoice' and choices.transforms[1][1].crop_size == (384, 600)


def two_images() -> tuple[list[torch.Tensor], list[DetDataSample]]:
    """Of different size, an object on each."""
    images, samples = [], []
    for height, width in ((96, 128), (80, 112)):
        images.append(torch.randint(256, (3, height, width), dtype=torch.uint8))
        size = {name: (height, width) for name in ('img_shape', 'ori_shape', 'pad_shape')}
        sample = DetDataSample(metainfo={**size, 'scale_factor': (1.0, 1.0)})
        masks = torch.zeros(1, height, width, dtype=torch.uint8)
        masks[:, 10:60, 20:70] = 1
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[20.0, 10, 70, 60]]),
            labels=torch.tensor([3]),
            masks=BitmapMasks(masks.numpy(), height, width),
        )
        samples.append(sample)
    return images, samples


STEPS = [
    'mask_rcnn_1x_biformer_small',
    pytest.param('retinanet_1x_crossformer_small', marks=pytest.mark.slow),
    pytest.param('mask_rcnn_1x_transnext_tiny', marks=pytest.mark.slow),
    pytest.param('mask_rcnn_3x_davit_tiny', marks=pytest.mark.slow),
    pytest.param('cascade_mask_rcnn_3x_crossformer_small', marks=pytest.mark.slow),
    pytest.param('dino_4scale_transnext_tiny', marks=pytest.mark.slow),
    pytest.param('dino_5scale_transnext_tiny', marks=pytest.mark.slow),
]


@pytest.mark.parametrize('name', STEPS)
def test_a_step_of_training_reaches_every_parameter(name):
    config = load(name)
    config.model.backbone.drop_path_rate = 0.0  # which leaves out blocks by chance
    if name.startswith('cascade'):
        for head in config.model.roi_head.bbox_head:
            head.norm_cfg.type = 'BN'  # the runner does so where there is no GPU
    config.optim_wrapper.pop('loss_scale', None)
    config.optim_wrapper.type = 'OptimWrapper'
    config.optim_wrapper.pop('accumulative_counts', None)
    if name.startswith('dino'):
        config.model.num_queries = config.model.test_cfg.max_per_img = 20  # there are no more places on small images
    model = MODELS.build(config.model)
    model.init_weights()
    model.train()
    images, samples = two_images()
    data = model.data_preprocessor({'inputs': images, 'data_samples': samples}, training=True)
    assert data['inputs'].shape[0] == 2
    losses, _ = model.parse_losses(model(**data, mode='loss'))
    assert losses.isfinite()
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    wrapper.backward(losses)
    for key, x in model.backbone.named_parameters():
        assert x.grad is not None and x.grad.isfinite().all(), key
    before = {key: x.detach().clone() for key, x in model.named_parameters()}
    wrapper.step()
    assert any(not torch.equal(x, before[key]) for key, x in model.backbone.named_parameters(prefix='backbone'))
    model.eval()
    with torch.no_grad():
        data = model.data_preprocessor({'inputs': images, 'data_samples': samples}, training=False)
        found = model(**data, mode='predict')
    assert [x.pred_instances.bboxes.shape[1] for x in found] == [4, 4]
