"""scikit-learn's handwritten digits on canvases, in COCO format: a detection set that is made in seconds.

A canvas has four to eight bright digits of various size and tint on a dark, spotted ground; none covers another.
Training canvases follow from the seed of a run. The held-out ones are the same for every seed, and show digits that no
training canvas shows.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image

from ..data.samples import Digits
from . import masks

TRAINING, HELD_OUT = 1500, 150  # canvases
SIDE = 128  # of a canvas, in pixels
_SMALLEST, _LARGEST = 16, 48  # side of a digit's 8 x 8 pixels on a canvas
_HELD_OUT_SEED = 2**40  # above any that a user is likely to choose
_VERSION = 1  # of the folder in the cache: a change of what is drawn makes a new one


def cached(seed: int) -> Path:
    """The folder with the canvases of a seed, made where it is not there yet."""
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'attnzoo'
    folder = cache / f'digits-on-canvases-{_VERSION}-{seed}'
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f'{folder}.lock'):
        if not folder.exists():
            unfinished = Path(tempfile.mkdtemp(dir=cache, prefix='unfinished-'))
            try:
                write(unfinished, seed)
                unfinished.chmod(0o755)
                unfinished.rename(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def write(folder: Path, seed: int, training: int = TRAINING, held_out: int = HELD_OUT) -> None:
    """Draw so many canvases into a folder, with their annotations."""
    (folder / 'annotations').mkdir(parents=True, exist_ok=True)
    for split, count, drawn_by in (('train', training, seed), ('validation', held_out, _HELD_OUT_SEED)):
        digits, rng = Digits(split), np.random.default_rng(drawn_by)
        (folder / split).mkdir(exist_ok=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(1, count + 1):
            canvas, objects = _draw(digits, rng)
            file = f'{number:06}.png'
            Image.fromarray(canvas).save(folder / split / file, compress_level=1)
            images.append({'id': number, 'file_name': file, 'width': SIDE, 'height': SIDE})
            annotations += [
                {'id': len(annotations) + index, 'image_id': number, **one} for index, one in enumerate(objects, 1)
            ]
        categories = [{'id': label + 1, 'name': name} for label, name in enumerate(digits.classes)]
        content = {'images': images, 'annotations': annotations, 'categories': categories}
        (folder / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))


def _draw(digits: Digits, rng: np.random.Generator) -> tuple[np.ndarray, list[dict[str, Any]]]:
    ground = rng.uniform(0, 80) + rng.uniform(0, 20, 3)
    canvas = ground + _texture(rng, 6, 10) + rng.normal(0, 6, (SIDE, SIDE, 3))
    free = np.ones((SIDE, SIDE), bool)
    objects: list[dict[str, Any]] = []
    for _ in range(rng.integers(4, 9)):
        item = int(rng.integers(len(digits)))
        image, label = digits.read(item)
        side = round(float(np.exp(rng.uniform(np.log(_SMALLEST), np.log(_LARGEST)))))
        ink = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), np.float64) / 255  # type: ignore[union-attr]
        rows, columns = np.nonzero(ink > 0.4)
        ink = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        color = rng.uniform(150, 220) + rng.uniform(-35, 35, 3)
        for _ in range(20):
            top, left = (int(rng.integers(SIDE - size + 1)) for size in ink.shape)
            place = np.s_[top : top + ink.shape[0], left : left + ink.shape[1]]
            if free[place].all():
                free[place] = False
                canvas[place] += ink[..., None] * (color - canvas[place])
                mask = np.zeros((SIDE, SIDE), bool)
                mask[place] = ink > 0.4
                objects.append(
                    {
                        'category_id': label + 1,
                        'bbox': [left, top, ink.shape[1], ink.shape[0]],
                        'area': int(mask.sum()),
                        'iscrowd': 0,
                        'segmentation': masks.encode(mask),
                    }
                )
                break
    return canvas.clip(0, 255).astype(np.uint8), objects


def _texture(rng: np.random.Generator, cells: int, strength: float) -> np.ndarray:
    """Soft spots of light and shade, (side, side, 1)."""
    spots = Image.fromarray(rng.normal(0, strength, (cells, cells)).astype(np.float32))
    return np.asarray(spots.resize((SIDE, SIDE), Image.Resampling.BICUBIC))[..., None]
