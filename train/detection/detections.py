"""What a detector finds on images, as arrays and in COCO's result format."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

MASK = 0.5  # probability from which on a pixel is of an object


def as_input(image: Image.Image) -> Tensor:
    """An image as a detector takes it: (3, height, width) of 0..1."""
    return pil_to_tensor(image).float() / 255


def detect(model: nn.Module, images: Sequence[Tensor], device: torch.device) -> list[dict[str, Any]]:
    """What a model finds on images, the best first, as NumPy's arrays; masks as run-length encodings."""
    found = []
    for output in model([image.to(device, non_blocking=True) for image in images]):
        one: dict[str, Any] = {key: output[key].float().cpu().numpy() for key in ('boxes', 'scores')}
        one['labels'] = output['labels'].cpu().numpy()
        if 'masks' in output:
            from . import masks  # needs a package of an extra, and boxes do not

            one['masks'] = [masks.encode(mask[0].cpu().numpy()) for mask in output['masks'] > MASK]
        found.append(one)
    return found


def as_results(found: dict[str, Any], image_id: Any, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Detections of one image in COCO's result format.

    Args:
        category_ids: by label - 1.
    """
    results = []
    for index, (x1, y1, x2, y2) in enumerate(found['boxes'].tolist()):
        result = {
            'image_id': image_id,
            'category_id': category_ids[int(found['labels'][index]) - 1],
            'bbox': [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
            'score': round(float(found['scores'][index]), 6),
        }
        if 'masks' in found:
            result['segmentation'] = found['masks'][index]
        results.append(result)
    return results
