"""The verbs, as a user calls them."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from attnzoo.train import config
from attnzoo.train.errors import program

# Packages of the extras: a plain `pip install attnzoo` has none of them.
EXTRAS = ('accelerate', 'albumentations', 'matplotlib', 'omegaconf', 'sklearn', 'tensorboard', 'torchmetrics')


def python(code: str, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-c', code, *map(str, arguments)], capture_output=True, text=True)


def without_extras(*commands: tuple) -> tuple[list[str], list[str]]:
    """Run commands in a process where the packages of the extras are not there, and return its lines."""
    code = f"""
import json, sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
hidden = lambda name, *rest: None if name.split('.')[0] in {EXTRAS} else find(name, *rest)
PathFinder.find_spec = staticmethod(hidden)
from attnzoo.__main__ import main
for command in json.loads(sys.argv.pop()):
    sys.argv[1:] = command
    try:
        main()
    except SystemExit as end:
        print('exit', end.code)
"""
    result = python(code, json.dumps([[str(word) for word in command] for command in commands]))
    assert result.returncode == 0, result
    return result.stdout.splitlines(), result.stderr.splitlines()


def test_help_names_the_verbs_and_imports_nothing_heavy():
    code = """
import sys
import attnzoo
before = set(sys.modules)
from attnzoo.__main__ import main
try:
    main()
except SystemExit:
    print(*{name.split('.')[0] for name in set(sys.modules) - before})
"""
    result = python(code, '--help')
    for verb in ('train', 'eval', 'predict', 'list', 'info', 'convert'):
        assert f'  {verb}  ' in result.stdout, result
    imported = set(result.stdout.splitlines()[-1].split())
    assert 'typer' in imported
    assert not imported & {*EXTRAS, 'torch', 'timm', 'numpy', 'PIL', 'safetensors'}


def test_training_without_its_extra_says_what_to_install():
    out, err = without_extras(('train', 'digits_biformer'), ('eval', 'biformer_tiny'))
    assert out == ['exit 1', 'exit 1']
    assert len(err) == 2
    assert all(line.endswith("which is not installed: pip install 'attnzoo[train]'") for line in err)


def test_predict_list_info_and_convert_need_no_extra(tmp_path: Path, images: Path):
    torch.save(timm.create_model('biformer_tiny').state_dict(), tmp_path / 'official.pth')
    converted, red = tmp_path / 'converted.safetensors', images / 'val' / 'red'
    out, err = without_extras(
        ('convert', tmp_path / 'official.pth', converted, '--model', 'biformer_tiny'),
        ('predict', converted, red / '00.png', red / '01.png'),
        ('list',),
        ('info', 'biformer_tiny'),
    )
    assert not err
    ends = [index for index, line in enumerate(out) if line.startswith('exit')]
    assert [out[index] for index in ends] == ['exit 0'] * 4
    predicted = out[ends[0] + 1 : ends[1]]
    assert [len(predicted), predicted[0], predicted[6]] == [12, str(red / '00.png'), str(red / '01.png')]
    percents = [float(line.split('%')[0]) for line in predicted[1:6]]
    assert percents == sorted(percents, reverse=True) and 0 < sum(percents) < 100


def test_list_shows_our_models_only(attnzoo, refused):
    result = attnzoo('list')
    assert result.code == 0
    for name in ('biformer_tiny', 'biformer_small', 'biformer_base', 'biformer_stl'):
        assert name in result.out
    assert ' resnet50 ' not in result.out and 'swin' not in result.out
    assert 'biformer_small' not in attnzoo('list', '*_tiny').out
    assert "did you mean 'biformer_tiny'" in refused('list', 'biformer_tinny')


def test_info_tells_the_facts_of_a_model(attnzoo):
    out = attnzoo('info', 'biformer_tiny').out
    for fact in ('13.14 M', '2.22', '3x224x224', 'biformer_tiny_in1k.pth', 'arxiv.org/abs/2303.08810', 'mit'):
        assert fact in out, out
    # timm's figures for its own model: 11.69 M parameters, 1.82 GMACs.
    out = attnzoo('info', 'resnet18').out
    assert '11.69 M' in out and '1.81' in out and 'apache-2.0' in out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('info', 'biformer_tinny'), "no model 'biformer_tinny'; did you mean 'biformer_tiny'"),
        (('train', '{recipe}', 'model.name=biformer_tinny'), "no model 'biformer_tinny'; did you mean 'biformer_tiny'"),
        (('train', '{recipe}', 'model.kwargs.regoins=3'), 'model.kwargs do not fit biformer_tiny: '),
        (('train', '{recipe}', 'model.pretrained=true'), 'cannot create biformer_tiny: biformer_tiny.in1k: no working'),
        (('train', '{recipe}', 'schedule.warmup_lr=['), "schedule.warmup_lr: got '[', which is no YAML: "),
        (('train', '{recipe}', 'output=${{x}}'), "output: got '${x}': settings know no interpolation"),
        (('train', '{recipe}', 'optim.lr=nan'), 'optim.lr: got nan, expected float, at least 0'),
        (('train', '{recipe}', 'model.kwargs.num_classes=3'), 'model.kwargs.num_classes: model.num_classes sets it'),
        (
            ('train', '{recipe}', 'model.kwargs={{features_only: true}}'),
            'model.kwargs: biformer_tiny is no classifier with features_only',
        ),
        (('train', '{recipe}', 'model.weights=nowhere'), 'nowhere: no run folder, no file and no URL'),
        (('config', 'data.stdd'), "no setting 'data.stdd'; did you mean 'data.std'"),
        (('list', '--recipes', 'finetun'), "no recipe matches 'finetun'; did you mean 'finetune'"),
        (('train', '{recipe}', 'optim.name=adamm'), 'optim.name=adamm: '),
        (('train', '{recipe}', 'schedule.warmup_epochs=2'), 'schedule.warmup_epochs=2 leaves nothing of 2 epochs'),
        (('train', '{recipe}', 'train.epoch=3'), "unknown key 'train.epoch'; did you mean 'train.epochs'?"),
        (('train', '{recipe}', 'train.epochs=three'), "train.epochs: got 'three', expected int"),
        (('train', 'digits_bifomer'), "list --recipes`; did you mean 'digits_biformer'"),
        (('train', '{recipe}', 'device=mps'), 'device=mps: there is none here'),
        (('eval', 'nowhere'), "'nowhere' is neither a run folder nor a model"),
        (('eval', '{images}'), 'no run folder: it holds neither best.safetensors nor last.safetensors'),
        (('predict', 'biformer_tiny', 'none.png'), 'cannot read image none.png: no such file'),
        (
            ('predict', 'biformer_tiny', 'none.png', '--device', 'gpu'),
            'device=gpu: expected one of auto, cuda, mps, cpu',
        ),
        (('predict', 'biformer_tiny', 'none.png', '--json', 'no/out.json'), 'no/out.json: no folder no'),
        (('predict', 'biformer_tinny', '{images}/val/red/00.png'), "did you mean 'biformer_tiny'"),
        (
            ('predict', 'biformer_tiny', '{images}/val/red/00.png'),
            'cannot create biformer_tiny: ',
        ),
    ],
)
def test_bad_input_is_one_line(arguments, message, recipe, images, tmp_path, monkeypatch, refused):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'no weights'))
    monkeypatch.chdir(tmp_path)
    assert message in refused(*(argument.format(recipe=recipe, images=images) for argument in arguments))
    assert not (tmp_path / 'runs' / 'tiny').exists()


def test_a_model_of_another_image_size_is_told_before_training(tmp_path, refused):
    recipe = tmp_path / 'vit.yaml'
    recipe.write_text('{model: {name: test_vit_relpos}, data: {image_size: 32}, train: {epochs: 1}}')
    line = refused('train', recipe, f'output={tmp_path / "run"}', 'schedule.warmup_epochs=0')
    assert line.startswith('test_vit_relpos does not take images of (3, 32, 32): ')
    assert line.endswith('or model.kwargs.img_size=32 where the model has that argument')


def test_what_a_file_system_refuses_is_one_line(refused, tmp_path, images):
    (tmp_path / 'file').write_text('')
    image = images / 'val' / 'red' / '00.png'
    line = refused('predict', 'biformer_tiny', image, '--json', tmp_path / 'file' / 'out.json')
    assert line.startswith(f'{tmp_path}/file/out.json: no folder')
    assert 'File name too long' in refused('info', 'x' * 5000)


def test_the_version_is_that_of_the_package(attnzoo):
    assert attnzoo('--version').out.strip() == importlib.metadata.version('attnzoo')


def test_recipes_are_listed_with_their_model_and_first_line(attnzoo, monkeypatch):
    monkeypatch.setattr('attnzoo.train.console.console.width', 200)
    out = attnzoo('list', '--recipes').out
    for name, path in config.recipes().items():
        [line] = [line for line in out.splitlines() if f' {name} ' in line]
        assert config.load(name).model.name in line
        assert path.read_text().splitlines()[0].removeprefix('# ')[:40] in line
    assert 'digits' not in attnzoo('list', '--recipes', '*finetune').out


def test_the_page_of_settings_is_what_the_command_prints(attnzoo, root):
    """`attnzoo config --markdown > docs/settings.md` writes it."""
    page = (root / 'docs' / 'settings.md').read_text()
    assert attnzoo('config', '--markdown').out == page
    for key, _ in config.fields():
        assert f'| `{key}` |' in page


def test_a_setting_is_explained(attnzoo):
    out = attnzoo('config', 'data.std').out
    assert out.splitlines()[0] == 'data.std=null' and 'standard deviation' in out and 'above 0' in out
    section = attnzoo('config', 'data.augment').out
    assert 'data.augment.mixup=0.0' in section and 'data.root' not in section
    everything = attnzoo('config').out.splitlines()
    assert [key for key, _ in config.fields()] == [line.split('=')[0] for line in everything if line[0] != ' ']


def test_hints_name_a_program_that_the_shell_finds(tmp_path, monkeypatch):
    scripts = tmp_path / 'venv' / 'bin'
    scripts.mkdir(parents=True)
    script = scripts / 'attnzoo'
    script.write_text('#!/bin/sh\n')
    script.chmod(0o755)
    monkeypatch.setattr('sysconfig.get_path', lambda _: str(scripts))
    monkeypatch.setenv('PATH', str(scripts))
    assert program() == 'attnzoo'
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert program() == 'venv/bin/attnzoo'
    monkeypatch.chdir(scripts)
    assert program() == './attnzoo'
    monkeypatch.chdir('/')
    assert program() in (str(script), str(script).removeprefix('/'))
    script.unlink()
    assert program().endswith('python -m attnzoo') or ' -m attnzoo' in program()
