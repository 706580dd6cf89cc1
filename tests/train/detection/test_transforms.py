"""Boxes and masks follow what happens to their image; what happens is drawn by where in the run it does."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attnzoo.train.config import AugmentConfig, DetectionConfig
from attnzoo.train.data.loading import seed_everything
from attnzoo.train.detection.coco import Coco, Objects, Picture
from attnzoo.train.detection.transforms import Annotated, train_transform

FLAT = {'color_jitter': 0.0}
SIZES = {'min_size': 96, 'max_size': 128}
CASES = {
    'as it is': (AugmentConfig(backend='none'), DetectionConfig(**SIZES, scales=[64], jitter=[0.1, 2.0])),
    'flips': (AugmentConfig(hflip=1.0, vflip=1.0, **FLAT), DetectionConfig(**SIZES)),
    'scales': (AugmentConfig(hflip=0.0, **FLAT), DetectionConfig(**SIZES, scales=[48, 64, 80])),
    'jitter': (AugmentConfig(hflip=0.5, **FLAT), DetectionConfig(**SIZES, jitter=[0.3, 2.0])),
    'albumentations': (
        AugmentConfig(backend='albumentations', hflip=1.0, vflip=0.5, rotate=0, **FLAT),
        DetectionConfig(**SIZES, jitter=[0.5, 1.5]),
    ),
}


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> tuple[str, Picture, Objects]:
    """A white rectangle on black, whose box and mask it is, near the left edge of a tall image."""
    pixels = np.zeros((160, 120, 3), np.uint8)
    pixels[40:80, 10:40] = 255
    path = tmp_path_factory.mktemp('source') / 'white.png'
    Image.fromarray(pixels).save(path)
    ring = [10.0, 40.0, 40.0, 40.0, 40.0, 80.0, 10.0, 80.0]
    return str(path), Picture(1, path.name, 120, 160), Objects([[10.0, 40.0, 40.0, 80.0]], [3], [[ring]])


def read(source, case, *numbers: int):
    path, picture, objects = source
    reader = pickle.loads(pickle.dumps(Annotated(train_transform(*CASES[case]), True)))  # as for a spawned worker
    seed_everything(*numbers)
    return reader(path, (0, picture, objects))


@pytest.mark.parametrize('case', CASES)
def test_boxes_and_masks_stay_on_their_object(case, source):
    seen = set()
    for position in range(8):
        image, target = read(source, case, 0, position)
        assert image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1
        height, width = image.shape[1:]
        seen.add((height, width))
        if not len(target['boxes']):  # cut off
            assert image.max() < 0.6 or case in ('jitter', 'albumentations')
            continue
        assert target['labels'].tolist() == [3] and target['masks'].shape == (1, height, width)
        rows, columns = (image.mean(0) > 0.5).nonzero(as_tuple=True)
        shown = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        assert torch.allclose(target['boxes'][0], shown, atol=1.6), (target['boxes'], shown)
        rows, columns = target['masks'][0].nonzero(as_tuple=True)
        masked = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        assert torch.allclose(masked, shown, atol=1.6)
    sizes = {
        'as it is': {(128, 96)},
        'flips': {(128, 96)},
        'scales': {(64, 48), (85, 64), (106, 80)},
        'jitter': {(128, 128)},
        'albumentations': {(128, 128)},
    }
    assert seen == sizes[case]


@pytest.mark.parametrize('case', ['jitter', 'albumentations'])
def test_a_sample_is_the_same_wherever_it_is_made(case, source):
    (one, boxes), (two, again), (other, _) = (read(source, case, 1, 2, seed) for seed in (3, 3, 4))
    assert torch.equal(one, two) and torch.equal(boxes['boxes'], again['boxes'])
    assert not torch.equal(one, other)


@pytest.mark.parametrize('backend', ['timm', 'albumentations', 'none'])
def test_an_image_without_objects_is_a_sample(backend, source):
    path, picture, _ = source
    augment = AugmentConfig(backend=backend)
    _, target = Annotated(train_transform(augment, DetectionConfig(**SIZES)), True)(path, (0, picture, Objects()))
    assert target['boxes'].shape == (0, 4) and target['labels'].shape == (0,) and target['masks'].shape[0] == 0


def test_albumentations_drops_the_masks_of_boxes_that_it_drops(source):
    """A rotation turns what lies in a corner out of the image, and not what lies in the middle."""
    path, picture, _ = source
    boxes = [[0.0, 0.0, 8.0, 8.0], [55.0, 75.0, 65.0, 85.0]]
    rings = [[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in boxes]
    augment = AugmentConfig(backend='albumentations', rotate=170, **FLAT)
    reader = Annotated(train_transform(augment, DetectionConfig(min_size=120, max_size=160)), True)
    left = []
    for seed in range(12):
        seed_everything(seed)
        _, target = reader(path, (0, picture, Objects(boxes, [1, 2], rings)))
        assert len(target['boxes']) == len(target['labels']) == len(target['masks'])
        left.append(target['labels'].tolist())
        rows, columns = target['masks'][left[-1].index(2)].nonzero(as_tuple=True)
        middle = torch.stack([columns.float().mean(), rows.float().mean()])
        assert torch.allclose(middle, torch.tensor([60.0, 80.0]), atol=2)
    assert [2] in left and [1, 2] in left


def test_training_batches_are_of_one_orientation(drawn: Path):
    samples = Coco(drawn, 'train', masks=False)
    shapes = [(10, 20), (20, 10), (30, 20)] * 40
    samples.pictures = [Picture(number, '', *shape) for number, shape in enumerate(shapes)]
    samples.group = 4
    order = samples.order(np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(120))
    wide = np.array([shapes[item][0] > shapes[item][1] for item in order]).reshape(-1, 4)
    assert (wide.all(1) | ~wide.any(1)).all() and not wide.all(1)[: len(wide) // 2].all()
    assert not np.array_equal(order, samples.order(np.random.default_rng(1)))
