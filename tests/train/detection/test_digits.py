"""Digits on canvases: what is drawn, by whose hand, and for which seed."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from attnzoo.train.data.samples import Digits
from attnzoo.train.detection import digits, masks


def annotations(root: Path, split: str) -> dict:
    return json.loads((root / 'annotations' / f'instances_{split}.json').read_text())


def test_held_out_canvases_are_the_same_for_every_seed_and_the_others_are_not(drawn: Path, tmp_path: Path):
    digits.write(tmp_path / 'again', 0, 3, 2)
    digits.write(tmp_path / 'other', 1, 3, 2)
    first = {split: (drawn / split / '000001.png').read_bytes() for split in ('train', 'validation')}
    for folder, same in (('again', True), ('other', False)):
        assert (tmp_path / folder / 'validation' / '000001.png').read_bytes() == first['validation']
        assert ((tmp_path / folder / 'train' / '000001.png').read_bytes() == first['train']) == same


def test_the_splits_share_no_handwriting():
    """Every digit on a canvas is drawn from its own part of scikit-learn's."""
    used: dict[str, set[int]] = {'train': set(), 'validation': set()}
    for split, seed in (('train', 3), ('validation', 4)):
        samples = Digits(split)
        read = samples.read
        samples.read = lambda item, split=split, samples=samples, read=read: (
            used[split].add(int(samples.indices[item])) or read(item)
        )
        rng = np.random.default_rng(seed)
        for _ in range(5):
            digits._draw(samples, rng)
    assert used['train'] and used['validation']
    assert used['train'] <= set(Digits('train').indices.tolist())
    assert used['validation'] <= set(Digits('validation').indices.tolist())
    assert not used['train'] & used['validation']


def test_masks_and_boxes_are_of_what_is_drawn(drawn: Path):
    content = annotations(drawn, 'train')
    covered = {image['id']: np.zeros((128, 128), int) for image in content['images']}
    for one in content['annotations']:
        mask = masks.decode(one['segmentation'], 128, 128)
        rows, columns = mask.nonzero()
        x, y, width, height = one['bbox']
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == [x, y, x + width, y + height]
        assert one['area'] == mask.sum() > 10
        covered[one['image_id']] += mask
    assert all(layers.max() == 1 for layers in covered.values())  # none hides another
    # The ink of a digit is far from the ground beside it.
    first = content['annotations'][0]
    pixels = np.asarray(Image.open(drawn / 'train' / '000001.png').convert('L'), float)
    mask = masks.decode(first['segmentation'], 128, 128).astype(bool)
    x, y, width, height = first['bbox']
    around = np.zeros_like(mask)
    around[max(0, y - 2) : y + height + 2, max(0, x - 2) : x + width + 2] = True
    assert abs(pixels[mask].mean() - pixels[around & ~mask].mean()) > 20


def test_canvases_are_drawn_once_and_kept(tmp_path: Path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(digits.write, '__defaults__', (2, 1))
    folder = digits.cached(5)
    assert folder.parent == tmp_path / 'attnzoo' and len(list(folder.glob('train/*.png'))) == 2
    (folder / 'kept').write_text('')
    assert digits.cached(5) == folder and (folder / 'kept').exists()
    assert digits.cached(6) != folder
