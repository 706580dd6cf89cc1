"""What becomes of an image on its way to a model: cropped, resized, augmented, normalised."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp
from torch import Tensor

from ..errors import UserError, near

if TYPE_CHECKING:  # the settings need packages of an extra, and predicting does not
    from ..config import AugmentConfig

INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')
POLICIES = 'rand-m9-mstd0.5-inc1, augmix-m5-w4-d2, original, originalr, v0, v0r or 3a'


@dataclass(frozen=True)
class Transform:
    """From an image of so many channels, see `decode`, to a tensor (channels, height, width)."""

    channels: int
    steps: Callable[[Image.Image], Tensor]

    def __call__(self, image: Image.Image) -> Tensor:
        return self.steps(image)


def train_transform(augment: 'AugmentConfig', data: dict[str, Any]) -> Transform:
    """The random transform of one training image. It can be pickled.

    Args:
        data: of a ModelSpec.

    Raises:
        UserError: a setting that no image can be transformed by.
    """
    if augment.backend == 'none':
        return eval_transform(data)
    channels = _check(data)
    _check_range('scale', augment.scale, 1)
    _check_range('ratio', augment.ratio, math.inf)
    if augment.backend == 'albumentations':
        return Transform(channels, _Albumentations(augment, data))
    if augment.rotate:
        raise UserError('data.augment.rotate needs data.augment.backend=albumentations')
    return Transform(channels, _timm(augment, data))


def eval_transform(data: dict[str, Any]) -> Transform:
    """The transform of one image that is scored or predicted; see `train_transform`."""
    return Transform(_check(data), create_transform(**data))


def _check(data: dict[str, Any]) -> int:
    """What timm and albumentations find out at the first image, or not at all. Returns the channels."""
    channels = data['input_size'][0]
    if channels not in (1, 3):
        raise UserError(f'the model has in_chans={channels}, and images are read with 1 channel (grey) or 3 (RGB)')
    if data['interpolation'] not in INTERPOLATIONS:
        hint = near(data['interpolation'], INTERPOLATIONS) or f'; it can be {", ".join(INTERPOLATIONS)}'
        raise UserError(f'data.interpolation={data["interpolation"]}: there is none of this name{hint}')
    for name, lowest in (('mean', -math.inf), ('std', 0)):
        values = list(data[name])
        if len(values) != channels or not all(lowest < value < math.inf for value in values):
            limit = ', each above 0' if name == 'std' else ''
            raise UserError(f'data.{name}={values}: expected a number for each of {channels} channels{limit}')
    return channels


def _check_range(name: str, values: Sequence[float], highest: float) -> None:
    low, high = values
    if not 0 < low <= high <= highest or math.isinf(high):
        limit = ' and at most 1' if highest == 1 else ''
        raise UserError(f'data.augment.{name}={list(values)}: expected the lowest and the highest, above 0{limit}')


def _timm(augment: 'AugmentConfig', data: dict[str, Any]) -> Callable[[Image.Image], Tensor]:
    policy = augment.auto_augment
    try:
        # timm steps over a section that has no number in it.
        for section in policy.split('-')[1:] if policy else ():
            if not any(map(str.isdigit, section)) and section != 'tweights':
                raise ValueError(f'{section!r} means nothing in it')
        transform = create_transform(
            data['input_size'],
            is_training=True,
            scale=(augment.scale[0], augment.scale[1]),
            ratio=(augment.ratio[0], augment.ratio[1]),
            hflip=augment.hflip,
            vflip=augment.vflip,
            color_jitter=augment.color_jitter,
            auto_augment=policy,
            re_prob=augment.erase,
            re_mode='pixel',
            interpolation=data['interpolation'],
            mean=data['mean'],
            std=data['std'],
        )
    except (AssertionError, ValueError, KeyError) as error:  # all else has been checked
        why = f' ({error})' if str(error) else ''
        raise UserError(f'data.augment.auto_augment={policy}: no policy of timm{why}; such are {POLICIES}') from error
    for operation in _operations(getattr(transform, 'transforms', ())):
        if operation.name.startswith('Posterize'):
            operation.aug_fn = _posterize
    return transform


def _operations(steps: Any) -> Iterator[AugmentOp]:
    """The operations of RandAugment, AugMix and AutoAugment, however deep."""
    for step in steps:
        if isinstance(step, AugmentOp):
            yield step
        elif isinstance(step, (list, tuple)):
            yield from _operations(step)
        else:
            yield from _operations([*getattr(step, 'ops', ()), *getattr(step, 'policy', ())])


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """As timm's, but black where no bit is left: Pillow 13 refuses that, and strong policies get there."""
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


class _Albumentations:
    """The pipeline of albumentations, with random numbers from NumPy's generator."""

    def __init__(self, augment: 'AugmentConfig', data: dict[str, Any]):
        os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')  # importing it asks the network for its newest version
        import albumentations
        import cv2

        if augment.auto_augment:
            raise UserError('data.augment.auto_augment needs data.augment.backend=timm')
        interpolation = {
            'nearest': cv2.INTER_NEAREST,
            'bilinear': cv2.INTER_LINEAR,
            'bicubic': cv2.INTER_CUBIC,
            'box': cv2.INTER_AREA,
            'lanczos': cv2.INTER_LANCZOS4,
        }
        if data['interpolation'] not in interpolation:
            raise UserError(f'data.interpolation={data["interpolation"]} needs data.augment.backend=timm')
        cv2.setNumThreads(0)  # its threads do not survive the fork of a worker
        self.arguments = augment, data
        jitter = augment.color_jitter
        self.pipeline = albumentations.Compose(
            [
                albumentations.RandomResizedCrop(
                    size=tuple(data['input_size'][1:]),
                    scale=tuple(augment.scale),
                    ratio=tuple(augment.ratio),
                    interpolation=interpolation[data['interpolation']],
                ),
                albumentations.Rotate(limit=augment.rotate, p=float(augment.rotate > 0)),
                albumentations.HorizontalFlip(p=augment.hflip),
                albumentations.VerticalFlip(p=augment.vflip),
                albumentations.ColorJitter(
                    brightness=jitter, contrast=jitter, saturation=jitter, hue=0, p=float(jitter > 0)
                ),
                albumentations.Normalize(mean=data['mean'], std=data['std']),
                albumentations.Erasing(p=augment.erase),
                albumentations.ToTensorV2(),
            ]
        )

    def __call__(self, image: Image.Image) -> Tensor:
        self.pipeline.set_random_seed(int(np.random.randint(2**31)))  # it has generators of its own
        pixels = np.asarray(image)
        return self.pipeline(image=pixels if pixels.ndim == 3 else pixels[..., None])['image']

    def __reduce__(self) -> tuple[Any, ...]:
        """Made anew in a worker that is no fork, with the settings of its libraries."""
        return type(self), self.arguments
