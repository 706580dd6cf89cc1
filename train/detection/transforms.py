"""What becomes of an image and its objects on their way to a detector: colours, flips, sizes, crops.

What is drawn at random comes from the generators that the loader has seeded for the sample.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..config import AugmentConfig, DetectionConfig
from ..data.images import UnreadableImage, decode
from ..data.samples import Source
from ..errors import UserError
from . import masks
from .coco import Objects, Picture
from .detections import as_input

Target = dict[str, Any]  # item; in training also boxes (N, 4) as corners, labels (N,), masks (N, height, width)
_SMALLEST = 1.0  # pixels that a side of a box must have left after a crop


class Annotated:
    """A `Reader` of images with objects: lists of images (3, height, width) of 0..1 and of their targets.

    Args:
        steps: transform of a training image with its objects; None: images as they are, without their objects.
        with_masks: the objects have masks.
    """

    def __init__(self, steps: Callable[[Any, Any], tuple[Tensor, Target]] | None, with_masks: bool):
        self.steps, self.with_masks = steps, with_masks

    def __call__(self, source: Source, target: tuple[int, Picture, Objects]) -> tuple[Tensor, Target]:
        item, picture, objects = target
        image = decode(source)
        if image.size != (picture.width, picture.height):
            raise UnreadableImage(
                f'it has {image.width} x {image.height} pixels, and {picture.width} x {picture.height} in the file'
            )
        if self.steps is None:
            return as_input(image), {'item': item}
        size = (picture.height, picture.width)
        boxes = torch.tensor(objects.boxes, dtype=torch.float32).reshape(-1, 4)
        shown: Target = {
            'boxes': tv_tensors.BoundingBoxes(boxes, format='XYXY', canvas_size=size),  # type: ignore[call-overload]
            'labels': torch.tensor(objects.labels, dtype=torch.long),
        }
        if self.with_masks:
            layers = [masks.decode(shape, *size) for shape in objects.masks]
            shown['masks'] = tv_tensors.Mask(np.stack(layers) if layers else np.zeros((0, *size), np.uint8))
        pixels, shown = self.steps(tv_tensors.Image(image), shown)
        return pixels, {'item': item, **shown}

    def collate(self, samples: Sequence[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
        return [image for image, _ in samples], [target for _, target in samples]


def train_transform(augment: AugmentConfig, detection: DetectionConfig) -> Callable[[Any, Any], tuple[Tensor, Target]]:
    """The random transform of one training image and its objects. It can be pickled."""
    if augment.rotate and augment.backend != 'albumentations':
        raise UserError('data.augment.rotate needs data.augment.backend=albumentations')
    steps: list[Callable] = []
    if augment.backend == 'albumentations':
        steps.append(_Albumentations(augment))
    elif augment.backend == 'timm':
        jitter = augment.color_jitter
        steps += [
            v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter),
            v2.RandomHorizontalFlip(augment.hflip),
            v2.RandomVerticalFlip(augment.vflip),
        ]
    longest = detection.max_size
    if detection.jitter and augment.backend != 'none':
        low, high = detection.jitter
        square = (longest, longest)
        steps += [v2.ScaleJitter(square, (low, high)), v2.RandomCrop(square, pad_if_needed=True)]
    else:
        sizes = detection.scales if detection.scales and augment.backend != 'none' else [detection.min_size]
        steps.append(v2.RandomShortestSize(sizes, longest))
    steps += [v2.SanitizeBoundingBoxes(min_size=_SMALLEST), v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose([*steps, v2.ToPureTensor()])


class _Albumentations:
    """The box-aware pipeline of albumentations, with random numbers from NumPy's generator."""

    def __init__(self, augment: AugmentConfig):
        os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')  # importing it asks the network for its newest version
        import albumentations
        import cv2

        cv2.setNumThreads(0)  # its threads do not survive the fork of a worker
        self.augment, jitter = augment, augment.color_jitter
        self.pipeline = albumentations.Compose(
            [
                albumentations.HorizontalFlip(p=augment.hflip),
                albumentations.VerticalFlip(p=augment.vflip),
                albumentations.Rotate(limit=augment.rotate, p=float(augment.rotate > 0)),
                albumentations.ColorJitter(
                    brightness=jitter, contrast=jitter, saturation=jitter, hue=0, p=float(jitter > 0)
                ),
            ],
            bbox_params=albumentations.BboxParams(
                format='pascal_voc', label_fields=['numbers'], clip=True, min_width=_SMALLEST, min_height=_SMALLEST
            ),
        )

    def __call__(self, pixels: tv_tensors.Image, shown: Target) -> tuple[tv_tensors.Image, Target]:
        self.pipeline.set_random_seed(int(np.random.randint(2**31)))  # it has generators of its own
        count = len(shown['labels'])
        given = {
            'image': np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()),
            'bboxes': shown['boxes'].numpy(),
            'numbers': np.arange(count),  # what says which of the objects are left
        }
        if count and 'masks' in shown:
            given['masks'] = shown['masks'].numpy()
        made = self.pipeline(**given)
        left = torch.as_tensor(np.asarray(made['numbers'], dtype=np.int64))
        boxes = torch.as_tensor(np.asarray(made['bboxes'], dtype=np.float32)).reshape(-1, 4)
        size = made['image'].shape[:2]
        changed: Target = {
            'boxes': tv_tensors.BoundingBoxes(boxes, format='XYXY', canvas_size=size),  # type: ignore[call-overload]
            'labels': shown['labels'][left],
        }
        if 'masks' in shown:
            layers = torch.as_tensor(np.ascontiguousarray(made['masks'])) if count else shown['masks']
            changed['masks'] = tv_tensors.Mask(layers[left])
        return tv_tensors.Image(np.ascontiguousarray(made['image']).transpose(2, 0, 1)), changed

    def __reduce__(self) -> tuple[Any, ...]:
        """Made anew in a worker that is no fork, with the settings of its libraries."""
        return type(self), (self.augment,)
