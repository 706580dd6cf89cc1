"""Average precision: of known detections, with crowds, sizes and classes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from attnzoo.train.data.loading import BadImages
from attnzoo.train.detection.coco import Coco
from attnzoo.train.detection.evaluation import evaluate
from attnzoo.train.errors import UserError


class Told(nn.Module):
    """Finds on the n-th image what it was made with."""

    def __init__(self, found: list[dict[str, Any]]):
        super().__init__()
        self.found = iter(found)

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        return [next(self.found) for _ in images]


def right(samples: Coco, item: int, score: float = 0.9) -> dict[str, torch.Tensor]:
    objects = samples.objects[item]
    count = len(objects.boxes)
    found = {
        'boxes': torch.tensor(objects.boxes).reshape(-1, 4),
        'labels': torch.tensor(objects.labels, dtype=torch.long),
        'scores': torch.full((count,), score),
    }
    if objects.masks:
        from attnzoo.train.detection import masks

        layers = [torch.from_numpy(masks.decode(shape, 128, 128)) for shape in objects.masks]
        found['masks'] = torch.stack(layers)[:, None].float()
    return found


def score(samples: Coco, found: list[dict[str, Any]], accelerator, items=None, with_masks: bool = False):
    items = range(len(samples)) if items is None else items
    batches = [([torch.zeros(3, 128, 128)], [{'item': item}], []) for item in items]
    return evaluate(Told(found), batches, samples, accelerator, BadImages(0, [], print), with_masks)


@pytest.fixture
def samples(drawn: Path) -> Coco:
    return Coco(drawn, 'validation', masks=True)


def test_all_found_is_one_and_nothing_found_is_nought(samples, accelerator):
    scores = score(samples, [right(samples, item) for item in range(4)], accelerator, with_masks=True)
    assert scores.numbers() == dict.fromkeys(('box_ap', 'box_ap50', 'mask_ap', 'mask_ap50'), pytest.approx(1.0))
    present = {label for objects in samples.objects for label in objects.labels}
    assert {name for name, ap in scores.box.classes.items() if ap} == {samples.classes[label - 1] for label in present}
    assert scores.box.sizes['large'] is None and scores.box.sizes['small'] == pytest.approx(1.0)
    assert scores.images == 4 and scores.objects == sum(len(objects.boxes) for objects in samples.objects)
    assert [one.item for one in scores.shown] == [0, 1, 2, 3] and scores.box.curve[0.9] == pytest.approx([1.0] * 101)
    nothing = {'boxes': torch.zeros(0, 4), 'labels': torch.zeros(0, dtype=torch.long), 'scores': torch.zeros(0)}
    empty = {**nothing, 'masks': torch.zeros(0, 1, 128, 128)}
    scores = score(samples, [empty] * 4, accelerator, with_masks=True)
    assert scores.numbers() == dict.fromkeys(('box_ap', 'box_ap50', 'mask_ap', 'mask_ap50'), 0.0)


def test_a_box_counts_up_to_the_overlap_that_it_reaches(samples, accelerator):
    """Boxes narrowed to 72 % of their width: right at the overlaps .5 to .7, five of ten, and wrong above."""
    found = [right(samples, item) for item in range(4)]
    for one in found:
        one['boxes'][:, 2] = one['boxes'][:, 0] + 0.72 * (one['boxes'][:, 2] - one['boxes'][:, 0])
    scores = score(samples, found, accelerator)
    assert scores.box.ap50 == pytest.approx(1.0) and scores.box.ap == pytest.approx(0.5)
    assert scores.box.ap75 == 0.0


def test_another_class_is_a_mistake_and_a_better_score_of_it_costs_more(samples, accelerator):
    found = [right(samples, item) for item in range(4)]
    wrong = [{**one, 'labels': one['labels'] % 10 + 1} for one in found]
    assert score(samples, wrong, accelerator).box.ap50 < 0.35
    low, high = (
        [
            {key: torch.cat([one[key], other[key] if key != 'scores' else one[key] * factor]) for key in one}
            for one, other in zip(found, wrong, strict=True)
        ]
        for factor in (0.5, 1.1)
    )
    for one in (*low, *high):
        order = one['scores'].argsort(descending=True, stable=True)
        one.update({key: value[order] for key, value in one.items()})
    assert score(samples, low, accelerator).box.ap50 == pytest.approx(1.0)
    assert score(samples, high, accelerator).box.ap50 < 0.99


def test_what_lies_in_a_crowd_is_no_mistake(canvases, accelerator):
    def crowd(content):
        first = content['annotations'][0]
        content['annotations'].append({**first, 'id': 999, 'bbox': [0, 0, 128, 128], 'iscrowd': 1})

    held_out = Coco(canvases.root, 'validation', masks=False)
    label = held_out.objects[0].labels[0]
    more = {
        'boxes': torch.tensor([[1.0, 1.0, 9.0, 9.0]]),
        'labels': torch.tensor([label]),
        'scores': torch.tensor([0.99]),
    }
    found = [{key: value for key, value in right(held_out, item).items()} for item in range(4)]
    found[0] = {key: torch.cat([more[key], found[0][key]]) for key in more}
    assert score(held_out, found, accelerator).box.ap50 < 0.999
    canvases.change(crowd, 'validation')
    crowded = Coco(canvases.root, 'validation', masks=False)
    assert score(crowded, found, accelerator).box.ap50 == pytest.approx(1.0)


def test_only_images_that_were_read_are_scored(samples, accelerator):
    found = [right(samples, item) for item in (0, 2)]
    scores = score(samples, found, accelerator, items=(0, 2))
    assert scores.images == 2 and scores.box.ap == pytest.approx(1.0)
    with pytest.raises(UserError, match='the held-out split has no image that can be read'):
        score(samples, [], accelerator, items=())


def test_polygons_are_masks_too(canvases, accelerator):
    def outline(content):
        for one in content['annotations']:
            x, y, width, height = one['bbox']
            one['segmentation'] = [[x, y, x + width, y, x + width, y + height, x, y + height]]

    canvases.change(outline, 'validation')
    samples = Coco(canvases.root, 'validation', masks=True)
    found = [right(samples, item) for item in range(4)]
    boxes, layer = samples.objects[0].boxes[0], found[0]['masks'][0, 0].numpy()
    rows, columns = np.nonzero(layer)
    assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == boxes
    assert score(samples, found, accelerator, with_masks=True).mask.ap == pytest.approx(1.0)
