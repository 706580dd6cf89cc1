"""Scoring a detector on held-out images: COCO's average precision, of boxes and of masks."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor, nn

from ..data.loading import BadImages, Batch
from ..errors import UserError
from .coco import Coco
from .detections import as_results, detect

SHOWN = 12  # images that a run draws
SIZES = ('all', 'small', 'medium', 'large')  # of objects, as COCO has them: below 32 x 32 pixels, below 96 x 96, others


@dataclass(frozen=True)
class Precision:
    """Average precision of boxes or of masks, 0..1; None where the images have no object to score it by.

    Attributes:
        sizes: over the overlaps .5 to .95, by the size of the objects.
        classes: the same and at an overlap of .5, by class.
        curve: precision at recalls of 0, .01, .. 1 for overlaps of .5, .75 and .9, mean of the classes.
    """

    ap: float
    ap50: float
    ap75: float
    sizes: dict[str, float | None]
    classes: dict[str, tuple[float, float] | None]
    curve: dict[float, list[float]]


@dataclass(frozen=True)
class Shown:
    """An image with what was found on it and what is there."""

    item: int
    image: Tensor  # (3, height, width), 0..1
    found: dict[str, Any]  # boxes, labels, scores and, where the detector has them, masks as run-length encodings


@dataclass(frozen=True)
class Scores:
    """What a detector reaches on a split.

    Attributes:
        items: numbers of the images.
        shown: some of the images.
        detections: on all images, with the number of the image for its id and the label for its category.
    """

    box: Precision
    mask: Precision | None
    images: int
    objects: int
    images_per_second: float
    items: list[int] = field(repr=False)
    shown: list[Shown] = field(repr=False)
    detections: list[dict[str, Any]] = field(repr=False)

    def numbers(self) -> dict[str, float]:
        numbers = {'box_ap': self.box.ap, 'box_ap50': self.box.ap50}
        return numbers | ({'mask_ap': self.mask.ap, 'mask_ap50': self.mask.ap50} if self.mask else {})


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    samples: Coco,
    accelerator: Accelerator,
    bad: BadImages,
    with_masks: bool,
) -> Scores:
    """Score `model` on the batches of all processes together. Unreadable images are left out, and counted by `bad`.

    Raises:
        UserError: no image can be read.
    """
    chosen = set(np.linspace(0, len(samples) - 1, min(SHOWN, len(samples))).round().astype(int).tolist())
    labels = range(1, len(samples.classes) + 1)
    detections: list[dict[str, Any]] = []
    items: list[int] = []
    shown: list[Shown] = []
    model.eval()
    start = time.perf_counter()
    for images, targets, problems in batches:
        bad.add(problems)
        if not images:
            continue
        with accelerator.autocast():
            outputs = detect(model, images, accelerator.device)
        for target, image, found in zip(targets, images, outputs, strict=True):
            items.append(target['item'])
            detections += as_results(found, target['item'], labels)
            if target['item'] in chosen:
                shown.append(Shown(target['item'], image.cpu(), found))
    bad.share()
    items, detections, shown = (gather_object(own) for own in (items, detections, shown))
    if not items:
        raise UserError('the held-out split has no image that can be read')
    seconds = time.perf_counter() - start
    scores = None
    if accelerator.is_main_process:
        truth = samples.truth(items)
        boxes = _precision(truth, detections, samples.classes, 'bbox')
        of_masks = _precision(truth, detections, samples.classes, 'segm') if with_masks else None
        objects = sum(not one['iscrowd'] for one in truth['annotations'])
        shown.sort(key=lambda one: one.item)
        scores = Scores(boxes, of_masks, len(items), objects, len(items) / seconds, items, shown, detections)
    # What only the main process draws and writes does not travel.
    told = broadcast_object_list([scores and replace(scores, items=[], shown=[], detections=[])])[0]
    return scores or told


def _precision(truth: dict[str, Any], detections: list[dict[str, Any]], names: list[str], kind: str) -> Precision:
    if not detections:
        present = {annotation['category_id'] for annotation in truth['annotations'] if not annotation['iscrowd']}
        classes = {name: (0.0, 0.0) if label in present else None for label, name in enumerate(names, 1)}
        return Precision(0.0, 0.0, 0.0, dict.fromkeys(SIZES), classes, {0.5: [0.0] * 101})
    coco = COCO(truth)
    # With a box beside it, a mask would be counted as small or large by the box.
    other = 'bbox' if kind == 'segm' else 'segmentation'
    results = [{key: value for key, value in one.items() if key != other} for one in detections]
    scoring = COCOeval_faster(coco, coco.loadRes(results), kind, print_function=lambda *_: None)
    scoring.evaluate()
    scoring.accumulate()
    # (overlaps, recalls, classes, sizes, limits of the number of detections); -1 where there is no object.
    precision = np.asarray(scoring.eval['precision']).reshape(10, 101, len(names), 4, -1)[..., -1]
    overlaps = {round(float(overlap), 2): index for index, overlap in enumerate(scoring.params.iouThrs)}
    by_class = precision[:, :, :, 0]
    curve = {overlap: _mean_curve(by_class[overlaps[overlap]]) for overlap in (0.5, 0.75, 0.9)}
    classes = {}
    for index, name in enumerate(names):
        ap, ap50 = _mean(by_class[:, :, index]), _mean(by_class[overlaps[0.5], :, index])
        classes[name] = None if ap is None or ap50 is None else (ap, ap50)
    sizes = {size: _mean(precision[..., index]) for index, size in enumerate(SIZES)}
    ap, ap50, ap75 = (_mean(part) for part in (by_class, by_class[overlaps[0.5]], by_class[overlaps[0.75]]))
    return Precision(ap or 0.0, ap50 or 0.0, ap75 or 0.0, sizes, classes, curve)


def _mean(precision: np.ndarray) -> float | None:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None


def _mean_curve(precision: np.ndarray) -> list[float]:
    """The mean over the classes that have objects, at each recall; (recalls, classes)."""
    known = precision[:, (precision > -1).all(0)]
    return known.mean(1).tolist() if known.size else [0.0] * len(precision)
