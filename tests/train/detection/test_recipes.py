"""The packaged recipes: their figures on the digits, and steps of the full ones on small images."""

import json
from pathlib import Path

import pytest

from attnzoo.train import config

from .conftest import DETECTORS


def test_every_detector_has_a_recipe_of_its_own_for_the_digits_and_for_coco():
    recipes = config.recipes()
    for detector in DETECTORS:
        small, full = (config.load(f'detection/{name}_{detector}') for name in ('digits', 'coco'))
        assert small.detection.detector == full.detection.detector == detector
        assert full.model.pretrained and not small.model.pretrained
        assert (full.data.train_split, full.data.val_split) == ('train2017', 'val2017')
        first = recipes[f'detection/coco_{detector}'].read_text().splitlines()[1]
        assert f'attnzoo train coco_{detector} data.root=PATH' in first


@pytest.mark.slow
@pytest.mark.parametrize('detector', DETECTORS)
def test_a_full_recipe_takes_steps_on_images_of_different_size(detector, canvases, tmp_path: Path, attnzoo):
    """As it is, but for the weights that it starts from and the size of its images."""
    result = attnzoo(
        *('train', f'coco_{detector}', f'data.root={canvases.root}', f'output={tmp_path}/run', 'train.epochs=1'),
        *('data.train_split=train', 'data.val_split=validation', 'model.pretrained=false', 'schedule.warmup_epochs=0'),
        *('detection.min_size=64', 'detection.max_size=96', 'data.batch_size=2', 'data.workers=0'),
        *(() if detector == 'rt_detr' else ('detection.scales=[48, 64]',)),
    )
    assert result.code == 0, result
    line = json.loads((tmp_path / 'run' / 'metrics.jsonl').read_text())
    assert line['update'] == 4 and 0 < line['train_loss'] < 1e4


@pytest.mark.slow
@pytest.mark.parametrize(
    ('detector', 'seed', 'figure', 'least'),
    [
        *(('faster_rcnn', seed, 'box_ap50', 0.92) for seed in (0, 1, 2)),
        ('fcos', 0, 'box_ap', 0.75),
        ('retinanet', 0, 'box_ap', 0.75),
        ('mask_rcnn', 0, 'mask_ap50', 0.92),
    ],
)
def test_the_recipes_of_the_digits_reach_their_figures(detector, seed, figure, least, tmp_path, attnzoo):
    result = attnzoo('train', f'detection/digits_{detector}', f'seed={seed}', f'output={tmp_path / "run"}')
    assert result.code == 0, result
    assert json.loads((tmp_path / 'run' / 'summary.json').read_text())[figure] >= least
