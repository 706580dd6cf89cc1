"""`attnzoo verify`: what becomes of published weights that are there, damaged, of another model, or nowhere."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where weights are placed, empty."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'home' / 'hub' / 'checkpoints'
    folder.mkdir(parents=True)
    return folder


def test_weights_that_are_there_load_and_are_scored(folder, tmp_path, attnzoo):
    torch.manual_seed(0)
    model = timm.create_model('biformer_tiny').eval()
    torch.save({'model': model.state_dict()}, folder / 'biformer_tiny_in1k.pth')
    first = attnzoo('verify', 'biformer_tiny')
    assert first.code == 0 and 'biformer_tiny.in1k: loads' in first.out, first
    report = json.loads((tmp_path / 'verify.json').read_text())
    (row,) = report['checkpoints']
    assert row['published_top1'] == 81.4 and len(row['sha256']) == 64 and row['published_sha256'] is None
    assert report['date'] and report['environment']['packages']['timm'] == timm.__version__

    rng = np.random.default_rng(0)
    for synset in ('n01440764', 'n01443537'):
        (tmp_path / 'imagenet' / 'val' / synset).mkdir(parents=True)
        for index in range(2):
            pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / 'imagenet' / 'val' / synset / f'{index}.png')
    settings = (f'data.root={tmp_path / "imagenet"}', 'data.image_size=64', 'data.workers=0')
    scored = attnzoo('verify', 'biformer_tiny', *settings, '--json', 'scored.json')
    assert scored.code == 1 and 'biformer_tiny.in1k: differs' in scored.out, scored  # it has learnt nothing
    (row,) = json.loads((tmp_path / 'scored.json').read_text())['checkpoints']
    assert row['images'] == 4 and row['top1'] < 81


def test_what_cannot_be_had_or_does_not_fit_is_said_and_the_others_go_on(folder, tmp_path, attnzoo):
    torch.save(timm.create_model('biformer_tiny').state_dict(), folder / 'biformer_small_in1k.pth')
    (folder / 'biformer_base_in1k.pth').write_bytes(b'<html>no file</html>')
    result = attnzoo('verify', 'biformer_[sb]*')
    assert result.code == 1, result
    rows = {row['name']: row for row in json.loads((tmp_path / 'verify.json').read_text())['checkpoints']}
    assert set(rows) == {f'biformer_{size}.in1k' for size in ('small', 'base', 'stl', 'stl_nchw')}
    assert {row['verdict'] for row in rows.values()} == {'failed'}
    assert 'does not fit BiFormer' in rows['biformer_small.in1k']['error']
    assert 'not a PyTorch checkpoint' in rows['biformer_base.in1k']['error']
    assert 'Place biformer_stl_in1k.pth' in rows['biformer_stl.in1k']['error']


def test_a_name_that_has_no_weights_is_refused(folder, refused):
    assert "no published weights of attnzoo match 'davit_giant_fused'" in refused('verify', 'davit_giant_fused')
    assert "did you mean 'biformer_tiny'" in refused('verify', 'biformer_tinny.in1k')
