"""Scoring of a model on data that names its classes otherwise, has others, or has only some of them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo

from attnzoo.train import models
from attnzoo.train.classes import match_classes

IMAGENET = ImageNetInfo()
QUICK = ('data.batch_size=8', 'data.workers=0')


def top1(out: str) -> float:
    return float(next(line for line in out.splitlines() if 'top-1' in line).split('│')[2].strip(' %'))


@pytest.fixture
def moved(trained, tmp_path: Path) -> Path:
    """The weights of the run alone, and a copy of its images."""
    shutil.copy(trained.run / 'best.safetensors', tmp_path / 'weights.safetensors')
    shutil.copytree(trained.images, tmp_path / 'images')
    return tmp_path


def test_a_file_is_scored_by_the_names_in_it(moved, attnzoo):
    """Without `blue`, the folders' own numbers would be those of other classes."""
    arguments = ('eval', moved / 'weights.safetensors', f'data.root={moved / "images"}', *QUICK)
    whole = attnzoo(*arguments)
    assert top1(whole.out) == 100 and 'chooses among' not in whole.out
    shutil.rmtree(moved / 'images' / 'val' / 'blue')
    part = attnzoo(*arguments)
    assert top1(part.out) == 100
    assert '2 of the 3 classes of biformer_tiny, which chooses among all' in part.out


def test_classes_that_the_model_does_not_have_are_refused(moved, refused):
    (moved / 'images' / 'val' / 'blue').rename(moved / 'images' / 'val' / 'violet')
    line = refused('eval', moved / 'weights.safetensors', f'data.root={moved / "images"}', *QUICK)
    assert line == '1 of the 3 classes of the data are none of biformer_tiny, whose 3 are blue, green, red: violet'


def test_numbered_folders_go_with_the_outputs_where_there_are_as_many(moved, attnzoo, refused):
    val = moved / 'images' / 'val'
    for index, name in enumerate(('blue', 'green', 'red')):
        (val / name).rename(val / str(index))
    arguments = ('eval', moved / 'weights.safetensors', f'data.root={moved / "images"}', *QUICK)
    result = attnzoo(*arguments)
    assert top1(result.out) == 100 and 'are taken for those of biformer_tiny: 0 is blue' in result.out
    shutil.rmtree(val / '2')
    assert '2 of the 2 classes of the data are none of biformer_tiny' in refused(*arguments)


def test_a_file_in_its_run_knows_its_data_and_a_moved_one_asks(trained, moved, attnzoo, refused):
    summary = json.loads((trained.run / 'summary.json').read_text())
    assert top1(attnzoo('eval', trained.run / 'best.safetensors').out) == pytest.approx(summary['top1'], abs=0.01)
    line = refused('eval', moved / 'weights.safetensors')
    assert 'on which images?' in line and 'data.root=PATH' in line


def test_settings_of_the_images_are_taken(trained, attnzoo, refused):
    """Each changes the score."""
    scores = set()
    for settings in (
        (),
        ('data.image_size=[48, 32]',),
        ('data.image_size=24',),
        ('data.image_size=24', 'data.interpolation=nearest'),
        ('data.image_size=24', 'data.crop_pct=0.5'),
        ('data.mean=[0.9, 0.1, 0.1]',),
        ('data.std=[1, 1, 1]',),
    ):
        result = attnzoo('eval', trained.run, *settings)
        assert result.code == 0, result
        scores.add(next(line for line in result.out.splitlines() if ' loss ' in line))
    assert len(scores) == 7
    for setting in ('optim.lr=1', 'model.kwargs.depths=[1]', 'train.epochs=1', 'output=x'):
        line = refused('eval', trained.run, setting)
        assert line.endswith('of the settings, eval takes data.*, log.*, device, precision and seed')


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """timm's test_vit with the classes of ImageNet, which says `goldfish` to everything."""
    model = timm.create_model('test_vit')
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()[IMAGENET.label_names().index('n01443537')] = 5
    file = tmp_path / 'goldfish.safetensors'
    spec = models.spec_of(model, 'test_vit', {}, IMAGENET.label_descriptions())
    safetensors.torch.save_file(model.state_dict(), file, spec.metadata())
    return file


def folders(root: Path, *names: str) -> Path:
    for name in names:
        (root / 'val' / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / 'val' / name / 'x.png')
    return root


def test_folders_of_imagenet_are_known_by_synset_or_by_word(named, tmp_path, attnzoo, refused):
    synsets = folders(tmp_path / 'synsets', 'n01443537', 'n02123045', 'n03126707')
    result = attnzoo('eval', named, f'data.root={synsets}', *QUICK)
    assert result.code == 0 and top1(result.out) == pytest.approx(100 / 3, abs=0.01), result
    words = folders(tmp_path / 'words', 'Carassius_auratus', 'goldfish', 'tabby', 'tiger cat')
    assert top1(attnzoo('eval', named, f'data.root={words}', *QUICK).out) == 50
    # Two classes are called crane.
    unclear = folders(tmp_path / 'unclear', 'goldfish', 'crane')
    assert refused('eval', named, f'data.root={unclear}', *QUICK).endswith(': crane')


def test_a_model_of_another_image_size_is_set_to_it(named, tmp_path, attnzoo, refused):
    """A vision transformer has tables of one size, which timm can resize; ours of any size needs nothing."""
    data = folders(tmp_path / 'data', 'n01443537', 'n02123045')
    assert top1(attnzoo('eval', named, f'data.root={data}', 'data.image_size=[96, 192]', *QUICK).out) == 50
    assert 'does not take images of (3, 7, 7)' in refused(
        'eval', named, f'data.root={data}', 'data.image_size=7', *QUICK
    )


def test_a_model_by_name_asks_for_images(tmp_path, attnzoo, refused, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    (tmp_path / 'hub' / 'checkpoints').mkdir(parents=True)
    weights = timm.create_model('biformer_tiny').state_dict()
    safetensors.torch.save_file(weights, tmp_path / 'hub' / 'checkpoints' / 'biformer_tiny.in1k.safetensors')
    line = refused('eval', 'biformer_tiny')
    assert line.startswith('biformer_tiny: on which images? `') and 'eval biformer_tiny data.root=PATH' in line
    data = folders(tmp_path / 'data', 'n01443537', 'n02123045')
    result = attnzoo('eval', 'biformer_tiny', f'data.root={data}', *QUICK)
    assert result.code == 0 and 'biformer_tiny, pretrained' in result.out
    assert '2 of the 1000 classes of biformer_tiny, which chooses among all' in result.out
    assert 'none of biformer_tiny, whose 1000 are tench' in refused('eval', 'biformer_tiny', 'data.format=digits')


@pytest.mark.parametrize(
    ('names', 'classes', 'count', 'expected'),
    [
        (['b', 'a'], ['a', 'b', 'c'], 3, ([1, 0], [])),
        (['Big_Dog'], ['cat', 'big dog'], 2, ([1], [])),
        (['a', 'x'], ['a', 'b', 'c'], 3, ([0], ['x'])),
        (['x', 'y'], [], 2, ([0, 1], [])),  # as many, and no names to go by
        (['x', 'y'], [], 3, ([], ['x', 'y'])),
        (['0', '1'], ['a', 'b'], 2, ([0, 1], [])),
        (['0', '1'], ['1', '0'], 2, ([1, 0], [])),
        (['a', 'b', 'sea'], ['a', 'b', 'c'], 3, ([0, 1, 2], [])),  # one spelling differs, all others are in place
        (['b', 'a', 'sea'], ['a', 'b', 'c'], 3, ([1, 0], ['sea'])),
        (['x', 'y', 'c'], ['a', 'b', 'c'], 3, ([2], ['x', 'y'])),
    ],
)
def test_classes_go_together_by_name_and_by_number_only_where_that_is_meant(names, classes, count, expected):
    assert match_classes(names, classes, count) == expected


def test_every_class_of_imagenet_is_found_by_its_names():
    descriptions = IMAGENET.label_descriptions()
    spelt_otherwise = [name.replace(' dog', ' hound') for name in descriptions]
    for names in (IMAGENET.label_names(), descriptions, spelt_otherwise):
        assert match_classes(names, descriptions, 1000) == (list(range(1000)), [])
    twice = {name for name in descriptions if descriptions.count(name) > 1}
    outputs, unknown = match_classes(descriptions[:500], descriptions, 1000)
    assert len(outputs) > 490 and set(unknown) <= twice and 'crane' in twice
