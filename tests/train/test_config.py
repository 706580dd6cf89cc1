"""Settings are strict: what the schema does not have, or has as another type, is one line that names the key."""

from pathlib import Path

import pytest

from attnzoo.train import config
from attnzoo.train.errors import UserError


def test_every_packaged_recipe_is_valid():
    known = config.recipes()
    assert {'classification/digits_biformer', 'classification/finetune'} <= set(known)
    for name, path in known.items():
        assert config.load(str(path)).task == name.split('/')[0]


@pytest.mark.parametrize(
    'name',
    [
        'classification/digits_biformer',
        'classification/digits_biformer.yaml',
        'digits_biformer',
        'digits_biformer.yaml',
    ],
)
def test_a_recipe_is_found_by_any_of_its_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert config.load(name).output == 'runs/digits_biformer'


def test_overrides_win_over_the_file(recipe: Path):
    loaded = config.load(str(recipe), ['optim.lr=1e-4', 'model.kwargs.depths=[2, 1]', 'train.clip=null', 'output=a b'])
    assert loaded.optim.lr == 1e-4
    assert loaded.model.kwargs['depths'] == [2, 1]
    assert loaded.model.kwargs['embed_dims'] == [16, 32]
    assert loaded.output == 'a b'


def test_what_is_written_loads_as_the_same_settings(recipe: Path, tmp_path: Path):
    loaded = config.load(str(recipe), ['seed=3', 'data.mean=[0.5, 0.5, 0.5]'])
    written = tmp_path / 'config.yaml'
    written.write_text(config.to_yaml(loaded))
    assert config.load(str(written)) == loaded


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('lr=1', "unknown key 'lr'; did you mean 'optim.lr'?"),
        ('optim.lrr=1', "unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        ('trian.epochs=1', "unknown key 'trian'; did you mean 'train'?"),
        ('data.augment.mixupp=1', "unknown key 'data.augment.mixupp'; did you mean 'data.augment.mixup'?"),
        ('optim.lr=fast', "optim.lr: got 'fast', expected float"),
        ('seed=1.5', 'seed: got 1.5, expected int'),
        ('train.compile=perhaps', "train.compile: got 'perhaps', expected bool"),
        (
            'data.augment.scale=0.5',
            'data.augment.scale: got 0.5, expected [float, float], above 0 and at most 1, the smaller first',
        ),
        ('data.augment.scale=[0.5]', 'data.augment.scale: got [0.5], expected [float, float], above 0'),
        ('data.augment.scale=[a, b]', "data.augment.scale: got ['a', 'b'], expected [float, float]"),
        ('optim.lr=[1]', 'optim.lr: got [1], expected float'),
        ('optim=adamw', "optim: got 'adamw', expected a section with keys of name, lr"),
        ('output=', 'output: got None, expected str'),
        ('data.batch_size=0', 'data.batch_size: got 0, expected int, from 1 to 1048576'),
        ('data.augment.hflip=2', 'data.augment.hflip: got 2.0, expected float, from 0 to 1'),
        ('device=gpu', "device: got 'gpu', expected one of auto, cpu, cuda, mps"),
        ('task=segmentation', "task: got 'segmentation', expected one of classification, detection"),
        ('detection.min_size=64', 'detection.min_size: a setting of task=detection, and this is task=classification'),
        ('seed', "'seed' is no setting: settings follow the config as key=value"),
        ('--seed=1', "'--seed=1' is no setting"),
    ],
)
def test_a_wrong_override_is_told_in_one_line(override: str, message: str, recipe: Path):
    with pytest.raises(UserError) as error:
        config.load(str(recipe), [override])
    assert str(error.value).startswith(message)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('model: {nam: x}', "unknown key 'model.nam'; did you mean 'model.name'?"),
        ('- 1', 'expected settings as `key: value`, got a list'),
        ('a: [', 'no YAML'),
        ('data: 3', 'data: got 3, expected a section'),
    ],
)
def test_a_wrong_file_is_told_in_one_line(text: str, message: str, tmp_path: Path):
    path = tmp_path / 'wrong.yaml'
    path.write_text(text)
    with pytest.raises(UserError) as error:
        config.load(str(path))
    assert message in str(error.value)
    assert '\n' not in str(error.value)


def test_a_config_that_is_not_there_names_those_that_are():
    with pytest.raises(
        UserError, match=r"no config 'digit_biformer', .* list --recipes`; did you mean 'digits_biformer'"
    ):
        config.load('digit_biformer')
