"""Scoring of a detector on held-out images: what `attnzoo eval` does with the run of one."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import models
from ..build import make_accelerator
from ..config import DetectionConfig, read_settings, resolve
from ..console import say, track
from ..data.images import decode
from ..data.loading import BadImages, eval_loader
from ..errors import UserError, program
from ..inputs import check_folders, write
from . import detectors
from .coco import Coco
from .drawing import draw_objects
from .evaluation import Scores, evaluate
from .report import show_scores
from .task import open_split
from .transforms import Annotated

# What scoring depends on; the other settings are of training, or of the detector that was trained.
_SETTINGS = ('data', 'log', 'device', 'precision', 'seed')
_DETECTION = ('min_size', 'max_size', 'bad_boxes', 'score_threshold', 'nms_threshold', 'max_detections')


def score(target: str, overrides: Sequence[str], json_file: str, folder: str) -> None:
    """Score a run or a file of weights on the held-out split, and print the average precision by size and class.

    Args:
        overrides: `key=value` over the settings of the run.
        json_file: where to write all detections in COCO's result format; '-' is stdout, '' is no file.
        folder: where to draw all detections; '' is nowhere.
    """
    _check(overrides)
    check_folders(json_file, folder)
    path = models.weights_file(target)
    state, spec, _ = models.read(path)
    assert spec and spec.detection
    settings = path.parent / 'config.yaml'
    of_run = read_settings(settings) if settings.is_file() else {}
    known = {item.name for item in dataclasses.fields(DetectionConfig)}
    detection = {name: value for name, value in spec.detection['settings'].items() if name in known}
    config = resolve({**of_run, 'task': 'detection', 'detection': detection}, overrides)
    if not (of_run or config.data.root or config.data.format != 'auto'):
        raise UserError(
            f'{target}: on which images? `{program()} eval {target} data.root=PATH` takes those of PATH, in COCO '
            'format, data.format=digits handwritten digits on canvases'
        )
    accelerator = make_accelerator(config)
    changes = {name: getattr(config.detection, name) for name in _DETECTION}
    spec = detectors.with_settings(spec, **changes)
    model = models.rebuild(spec, state, str(path))
    with_masks = config.detection.detector == 'mask_rcnn'
    samples = open_split(config, config.data.val_split, with_masks, spec.classes)
    if accelerator.is_main_process:
        for remark in samples.remarks:
            say(remark)
    loader = eval_loader(
        config.data, samples, Annotated(None, with_masks), accelerator.process_index, accelerator.num_processes
    )
    tracked = track(loader, 'scoring', len(loader), config.log.seconds, show=accelerator.is_main_process)
    bad = BadImages(config.data.max_bad_images, [], say)
    scores = evaluate(model.to(accelerator.device), tracked, samples, accelerator, bad, with_masks)
    if accelerator.is_main_process:
        show_scores(f'{spec.title}: {path}', scores)
        write(json_file, json.dumps(_as_results(scores, samples)) + '\n')
        if folder:
            _draw(Path(folder), scores, samples)


def _check(overrides: Sequence[str]) -> None:
    for override in overrides:
        key, separator, _ = override.partition('=')
        section, _, name = key.partition('.')
        if separator and section not in _SETTINGS and not (section == 'detection' and name in _DETECTION):
            raise UserError(
                f'{key}: of the settings, eval takes data.*, log.*, device, precision, seed, and of detection '
                f'{", ".join(_DETECTION)}'
            )


def _as_results(scores: Scores, samples: Coco) -> list[dict[str, Any]]:
    """Detections with the ids of the file of annotations. Categories that it does not have are left out."""
    return [
        {**one, 'image_id': samples.pictures[one['image_id']].id, 'category_id': identifier}
        for one in scores.detections
        if (identifier := samples.category_ids[one['category_id'] - 1]) is not None
    ]


def _draw(folder: Path, scores: Scores, samples: Coco) -> None:
    folder.mkdir(exist_ok=True)
    by_item: dict[int, list[dict[str, Any]]] = {item: [] for item in scores.items}
    for one in scores.detections:
        by_item[one['image_id']].append(one)
    for item, results in by_item.items():
        source, (_, picture, _) = samples.read(item)
        boxes = np.array([one['bbox'] for one in results]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found = {
            'boxes': boxes,
            'labels': [one['category_id'] for one in results],
            'scores': [one['score'] for one in results],
        }
        if results and 'segmentation' in results[0]:
            found['masks'] = [one['segmentation'] for one in results]
        name = Path(picture.file.replace('/', '_')).with_suffix('.png').name
        draw_objects(decode(source), found, samples.classes).save(folder / name)
    say(f'drew {len(by_item)} images in {folder}')
