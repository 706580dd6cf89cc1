"""Detectors: what they stand on, what they take and return, and what they start from."""

import dataclasses

import pytest
import timm
import torch

from attnzoo.train.build import create_optimizer
from attnzoo.train.config import DetectionConfig, load
from attnzoo.train.detection.detectors import build, make_body
from attnzoo.train.detection.task import build as build_task
from attnzoo.train.errors import UserError
from attnzoo.train.models import ModelSpec

from .conftest import DETECTORS, recipe_of

KWARGS = {
    'embed_dims': [16, 32],
    'depths': [1, 1],
    'mlp_ratios': [1, 1],
    'head_dim': 8,
    'global_heads': 4,
    'regions': 2,
}
KWARGS |= {'top_k': [2, None]}
DATA = {'input_size': (3, 64, 64), 'mean': (0.5,) * 3, 'std': (0.25,) * 3}


@pytest.fixture
def spec_of(tmp_path):
    def make(detector: str, **changes) -> ModelSpec:
        settings = dataclasses.replace(load(str(recipe_of(detector, tmp_path))).detection, **changes)
        parts = {'settings': dataclasses.asdict(settings), 'category_ids': [1, 2, 3]}
        return ModelSpec('biformer_tiny', 3, dict(KWARGS), DATA, ['a', 'b', 'c'], parts)

    return make


def targets(with_masks: bool) -> list[dict]:
    """An image with an object and one without."""
    made = [
        {'item': 0, 'boxes': torch.tensor([[8.0, 8.0, 40.0, 44.0]]), 'labels': torch.tensor([3])},
        {'item': 1, 'boxes': torch.zeros(0, 4), 'labels': torch.zeros(0, dtype=torch.long)},
    ]
    if with_masks:
        made[0]['masks'] = torch.zeros(1, 64, 64, dtype=torch.uint8)
        made[0]['masks'][0, 8:44, 8:40] = 1
        made[1]['masks'] = torch.zeros(0, 48, 64, dtype=torch.uint8)
    return made


@pytest.mark.parametrize('name', DETECTORS)
def test_a_detector_learns_from_images_with_and_without_objects(name, spec_of):
    torch.manual_seed(0)
    detector = build(spec_of(name)).train()
    images = [torch.rand(3, 64, 64), torch.rand(3, 48, 64)]
    for chosen in (slice(0, 2), slice(1, 2)):
        detector.zero_grad(set_to_none=True)
        torch.manual_seed(1)
        loss = sum(detector(images[chosen], targets(name == 'mask_rcnn')[chosen]).values())
        assert loss.isfinite()
        loss.backward()
        # Processes that share a run wait for every gradient.
        assert not [key for key, parameter in detector.named_parameters() if parameter.grad is None]
    before = {key: parameter.grad.clone() for key, parameter in detector.named_parameters()}
    detector.set_grad_checkpointing()
    detector.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    sum(detector(images[chosen], targets(name == 'mask_rcnn')[chosen]).values()).backward()
    for key, parameter in detector.named_parameters():
        torch.testing.assert_close(parameter.grad, before[key], msg=key)


@pytest.mark.parametrize('name', DETECTORS)
def test_detections_are_in_pixels_of_the_image_given(name, spec_of):
    """A plain image of four times the size, which is resized to the same, has its boxes four times as far apart."""
    torch.manual_seed(0)
    detector = build(spec_of(name)).eval()
    image, large = (torch.full((3, 64 * factor, 48 * factor), 0.3) for factor in (1, 4))
    with torch.no_grad():
        small, big = detector([image])[0], detector([large])[0]
    assert set(small['labels'].tolist()) <= {1, 2, 3} or name != 'rt_detr'
    assert len(small['boxes']) == len(big['boxes']) and small['boxes'].shape[1] == 4
    assert (small['scores'].diff() <= 1e-6).all()
    if len(small['boxes']):
        assert big['boxes'][:, 2].max() <= 4 * 48 and big['boxes'][:, 3].max() <= 4 * 64
        torch.testing.assert_close(big['boxes'][:3] / 4, small['boxes'][:3], rtol=0, atol=1.5)
    if name == 'mask_rcnn':
        assert big['masks'].shape[1:] == (1, 256, 192)


def test_rt_detr_takes_images_of_fewer_places_than_queries(spec_of):
    detector = build(spec_of('rt_detr', queries=200, min_size=32, max_size=32)).eval()
    with torch.no_grad():
        assert len(detector([torch.rand(3, 32, 32)])[0]['boxes']) == 10


@pytest.mark.parametrize(
    ('name', 'levels', 'kwargs'),
    [
        ('biformer_tiny', [8, 16], {'depths': (1, 1, 1, 1)}),
        ('maxvit_tiny_fused', [4, 8], {'depths': (1, 1, 1, 1)}),  # its first map is the stem's, of stride 2
        ('test_resnet', [8, 32], {}),
    ],
)
def test_levels_are_chosen_by_their_stride(name, levels, kwargs):
    body = make_body(name, kwargs, levels).eval()
    assert body.feature_info.reduction() == levels
    with torch.no_grad():
        maps = body(torch.zeros(1, 3, 64, 96))
    assert [one.shape[-2:] for one in maps] == [(64 // stride, 96 // stride) for stride in levels]
    with pytest.raises(UserError, match=rf'detection.levels=\[4, 5\]: {name} has no map of stride 5, but of '):
        make_body(name, kwargs, [4, 5])


def test_anchors_are_exact_in_any_precision(spec_of):
    """bfloat16 would put an anchor at 1033 pixels to 1032."""
    detector = build(spec_of('retinanet'))
    maps = [torch.zeros(1, 32, 4, 300, dtype=torch.bfloat16), torch.zeros(1, 32, 2, 150, dtype=torch.bfloat16)]
    images = type('Images', (), {'tensors': torch.zeros(1, 3, 16, 1200), 'image_sizes': [(16, 1200)]})
    anchors = detector.net.anchor_generator(images, maps)[0]
    assert anchors.dtype == torch.float32 and 1188.0 - 8 in anchors[:, 0].tolist()


def test_layer_decay_falls_towards_the_stem(tmp_path, spec_of):
    config = load(str(recipe_of('faster_rcnn', tmp_path)), ['optim.layer_decay=0.5', 'optim.lr=1'])
    detector = build(spec_of('faster_rcnn'))
    scales = {}
    names = {id(parameter): key for key, parameter in detector.named_parameters()}
    for group in create_optimizer(config, detector, 4).param_groups:
        scales |= {names[id(parameter)]: group['lr_scale'] for parameter in group['params']}
    stem = {scale for key, scale in scales.items() if '.body.model.stem.' in key}
    last = {scale for key, scale in scales.items() if '.body.model.stages.1.blocks.' in key}
    head = {scale for key, scale in scales.items() if '.body.' not in key}
    assert (stem, last, head) == ({0.125}, {0.5}, {1.0})


def test_a_backbone_starts_from_the_weights_of_a_classifier(tmp_path, spec_of):
    """Of an official file: the classifier is left out, and all else must fit."""
    torch.manual_seed(3)
    classifier = timm.create_model('biformer_tiny', num_classes=7, **KWARGS)
    torch.save({'model': classifier.state_dict()}, tmp_path / 'weights.pth')
    told: list[str] = []
    for name in ('faster_rcnn', 'rt_detr'):
        config = load(str(recipe_of(name, tmp_path)), [f'model.weights={tmp_path}/weights.pth'])
        detector = build_task(config, spec_of(name), told.append, start=True)
        weights, own = classifier.state_dict(), detector.body.model.state_dict()
        assert len(own) > 20 and all(torch.equal(own[key], weights[key]) for key in own)
    assert told == [f'starting from {tmp_path}/weights.pth: the backbone'] * 2
    torch.save({'model': timm.create_model('biformer_tiny', num_classes=7).state_dict()}, tmp_path / 'weights.pth')
    with pytest.raises(UserError, match=r'weights\.pth does not fit BiFormer '):
        build_task(config, spec_of(name), told.append, start=True)


def test_defaults_build_every_detector_on_a_model_of_four_stages():
    for name in DETECTORS:
        parts = {'settings': dataclasses.asdict(DetectionConfig(detector=name)), 'category_ids': [1]}
        spec = ModelSpec(
            'biformer_tiny', 1, {'depths': (1, 1, 1, 1), 'embed_dims': (32, 32, 32, 32)}, DATA, ['a'], parts
        )
        build(spec)
