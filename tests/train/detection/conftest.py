"""Canvases with digits, and detectors small enough to train in a second."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from attnzoo.train.detection import digits

RECIPE = """
task: detection
model:
  name: biformer_tiny
  kwargs: {embed_dims: [16, 32], depths: [1, 1], mlp_ratios: [1, 1], head_dim: 8, global_heads: 4, regions: 2,
           top_k: [2, null], drop_path_rate: 0.2}
data: {batch_size: 4, workers: 0, augment: {hflip: 0.5, color_jitter: 0.2}}
detection:
  detector: DETECTOR
  min_size: 64
  max_size: 64
  levels: [4, 8]
  extra_levels: 0
  channels: 32
  anchor_sizes: SIZES
  head_convs: 1
  head_channels: 16
  proposals: 16
  proposal_samples: 16
  box_samples: 16
  roi_size: 3
  queries: 20
  decoder_layers: 1
  score_threshold: 0.0
  max_detections: 10
train: {epochs: 2, clip: 5}
optim: {lr: 3.0e-3}
schedule: {warmup_epochs: 0}
log: {tensorboard: false}
"""
DETECTORS = ('retinanet', 'fcos', 'faster_rcnn', 'mask_rcnn', 'rt_detr')


@pytest.fixture(scope='session')
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine canvases to train on and four held-out ones. No test may change them."""
    root = tmp_path_factory.mktemp('canvases')
    digits.write(root, 0, 9, 4)
    return root


@dataclass
class Canvases:
    """A set of one's own, whose annotations can be changed."""

    root: Path

    def change(self, change: Callable[[dict[str, Any]], Any], split: str = 'train') -> Path:
        path = self.root / 'annotations' / f'instances_{split}.json'
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        return path


@pytest.fixture
def canvases(drawn: Path, tmp_path: Path) -> Canvases:
    shutil.copytree(drawn, tmp_path / 'canvases')
    return Canvases(tmp_path / 'canvases')


def recipe_of(detector: str, folder: Path) -> Path:
    path = folder / f'{detector}.yaml'
    sizes = '[4, 8]' if detector == 'fcos' else '[16, 32]'
    path.write_text(RECIPE.replace('DETECTOR', detector).replace('SIZES', sizes))
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[[str], Path]:
    """The recipe of a detector, small."""
    return lambda detector='faster_rcnn': recipe_of(detector, tmp_path)
