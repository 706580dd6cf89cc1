"""What a transform gives for pixels that are known, and what it refuses before the first of them."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from attnzoo.train.config import AugmentConfig
from attnzoo.train.data.loading import seed_everything
from attnzoo.train.data.transforms import eval_transform, train_transform
from attnzoo.train.errors import UserError


def look(channels: int = 3, height: int = 32, width: int = 32, **settings: Any) -> dict[str, Any]:
    """The part of a ModelSpec that says what images look like."""
    size = {'input_size': (channels, height, width), 'interpolation': 'bicubic', 'crop_pct': 1.0, 'crop_mode': 'center'}
    return {**size, 'mean': (0.5,) * channels, 'std': (0.25,) * channels, **settings}


def noise(mode: str) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (36, 50, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


AUGMENTS = [
    AugmentConfig(erase=0.5, vflip=0.5),
    AugmentConfig(auto_augment='rand-m10-mstd3-inc1'),
    AugmentConfig(auto_augment='v0'),
    AugmentConfig(auto_augment='augmix-m5-w4-d2'),
    AugmentConfig(backend='albumentations', rotate=20, erase=0.5),
    AugmentConfig(backend='none'),
]


@pytest.mark.parametrize('augment', AUGMENTS, ids=lambda augment: augment.auto_augment or augment.backend)
@pytest.mark.parametrize(('channels', 'mode'), [(1, 'L'), (3, 'RGB')])
def test_every_augmentation_takes_grey_and_color_and_travels_to_a_worker(augment, channels: int, mode: str):
    """The policies go to their strongest, where some operations leave nothing of an image."""
    transform = train_transform(augment, look(channels, 24, 40))
    arrived = pickle.loads(pickle.dumps(transform))
    assert arrived.channels == channels
    for seed in range(40):
        tensors = []
        for each in (transform, arrived):
            seed_everything(seed)
            tensors.append(each(noise(mode)))
        assert tensors[0].shape == (channels, 24, 40) and tensors[0].dtype == torch.float32
        assert tensors[0].isfinite().all() and torch.equal(*tensors)


@pytest.mark.parametrize('crop_mode', ['center', 'squash', 'border'])
def test_evaluation_keeps_the_middle_of_an_image_that_is_no_square(crop_mode: str):
    """A white cross in the middle of an image is in the middle of 20 x 60 pixels, whatever becomes of the edges."""
    pixels = np.zeros((120, 120), np.uint8)
    pixels[58:62], pixels[:, 58:62] = 255, 255
    data = look(1, 20, 60, crop_mode=crop_mode, crop_pct=0.9, mean=(0.0,), std=(1.0,))
    tensor = eval_transform(data)(Image.fromarray(pixels))
    assert tensor.shape == (1, 20, 60)
    assert int(tensor[0].sum(1).argmax()) in (9, 10) and int(tensor[0].sum(0).argmax()) in (29, 30)


def test_pixels_are_normalised_by_channel():
    color = Image.new('RGB', (8, 8), (255, 0, 51))
    tensor = eval_transform(look(3, 8, 8, mean=(0.5, 0.5, 0.1), std=(0.5, 0.25, 0.1)))(color)
    assert torch.allclose(tensor[:, 0, 0], torch.tensor([1.0, -2.0, 1.0]), atol=1e-6)
    grey = eval_transform(look(1, 8, 8))(Image.new('L', (8, 8), 255))
    assert torch.equal(grey, torch.full((1, 8, 8), 2.0))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'interpolation': 'cubic'}, "data.interpolation=cubic: there is none of this name; did you mean 'bicubic'"),
        (
            {'interpolation': 'nope'},
            'data.interpolation=nope: .* it can be nearest, bilinear, bicubic, box, hamming, lanczos',
        ),
        ({'std': (0, 0, 0)}, r'data.std=\[0, 0, 0\]: expected a number for each of 3 channels, each above 0'),
        ({'std': (0.5, -1, 0.5)}, 'each above 0'),
        ({'mean': (0.5, float('nan'), 0.5)}, r'data.mean=\[0.5, nan, 0.5\]: expected a number for each of 3 channels'),
        ({'mean': (0.5,)}, 'expected a number for each of 3 channels'),
        ({'input_size': (4, 32, 32)}, r'in_chans=4, and images are read with 1 channel \(grey\) or 3 \(RGB\)'),
    ],
)
def test_settings_that_no_image_survives_are_refused(settings, message: str):
    for make in (eval_transform, lambda data: train_transform(AugmentConfig(), data)):
        with pytest.raises(UserError, match=message):
            make(look(**settings))


@pytest.mark.parametrize(
    ('augment', 'message'),
    [
        ({'auto_augment': 'randaug'}, 'auto_augment=randaug: no policy of timm; such are rand-m9-mstd0.5-inc1, '),
        ({'auto_augment': 'nope'}, r'auto_augment=nope: no policy of timm \(Unknown AA policy nope\); such are '),
        ({'auto_augment': 'rand-nope'}, "'nope' means nothing in it"),
        ({'auto_augment': 'rand-z9'}, 'no policy of timm'),
        ({'auto_augment': 'rand-m9.5'}, 'no policy of timm'),
        ({'auto_augment': 'rand-m9', 'backend': 'albumentations'}, 'auto_augment needs data.augment.backend=timm'),
        ({'rotate': 5.0}, 'data.augment.rotate needs data.augment.backend=albumentations'),
        ({'scale': [0, 0]}, r'data.augment.scale=\[0, 0\]: expected the lowest and the highest, above 0 and at most 1'),
        ({'scale': [1, 0.5]}, 'data.augment.scale'),
        ({'scale': [0.5, 2]}, 'data.augment.scale'),
        ({'scale': [float('nan'), 1]}, 'data.augment.scale'),
        ({'ratio': [0, 1]}, r'data.augment.ratio=\[0, 1\]: expected the lowest and the highest, above 0$'),
        ({'ratio': [2, 1]}, 'data.augment.ratio'),
        ({'ratio': [1, float('inf')]}, 'data.augment.ratio'),
    ],
)
def test_augmentations_that_make_no_sense_are_refused(augment, message: str):
    with pytest.raises(UserError, match=message):
        train_transform(AugmentConfig(**augment), look())


def test_albumentations_has_no_hamming():
    with pytest.raises(UserError, match=r'data\.interpolation=hamming needs data\.augment\.backend=timm'):
        train_transform(AugmentConfig(backend='albumentations'), look(interpolation='hamming'))
    for interpolation in ('nearest', 'bilinear', 'bicubic', 'box', 'lanczos'):
        transform = train_transform(AugmentConfig(backend='albumentations'), look(interpolation=interpolation))
        assert transform(noise('RGB')).shape == (3, 32, 32)
