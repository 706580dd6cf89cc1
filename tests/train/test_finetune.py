"""Where a training starts from: published weights, a run, a file, a URL; and what becomes of the classifier."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from attnzoo.train import config, models

SHORT = ('train.epochs=1', 'schedule.warmup_epochs=0', 'data.workers=0', 'data.batch_size=8', 'log.tensorboard=false')
# Nothing moves, so that what a run ends with is what it started from.
STILL = ('optim.lr=0', 'schedule.min_lr=0')
RECIPE = 'classification/finetune'


@pytest.fixture(scope='module')
def official() -> dict[str, torch.Tensor]:
    """A checkpoint of biformer_tiny with classes of ImageNet, as its authors would publish one."""
    torch.manual_seed(3)
    return timm.create_model('biformer_tiny').state_dict()


@pytest.fixture
def pets(trained, tmp_path: Path) -> Path:
    """The images with other classes: two of them."""
    for split in ('train', 'val'):
        for old, new in (('blue', 'cat'), ('red', 'dog')):
            shutil.copytree(trained.images / split / old, tmp_path / 'pets' / split / new)
    return tmp_path / 'pets'


def parameters(path: Path) -> dict[str, torch.Tensor]:
    state = safetensors.torch.load_file(path)
    return {key: value for key, value in state.items() if 'running' not in key and 'num_batches' not in key}


def same_but_head(run: Path, start: dict[str, torch.Tensor]) -> bool:
    tuned = parameters(run / 'last.safetensors')
    body = [key for key in tuned if not key.startswith('head.fc')]
    assert len(body) > 20
    return all(torch.equal(tuned[key], start[key]) for key in body)


def test_a_placed_official_file_is_fine_tuned_by_the_recipe(official, trained, tmp_path, attnzoo, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    placed = tmp_path / 'home' / 'hub' / 'checkpoints' / 'biformer_tiny_in1k.pth'
    placed.parent.mkdir(parents=True)
    torch.save({'model': official}, placed)
    run = tmp_path / 'run'
    arguments = ('model.name=biformer_tiny', f'data.root={trained.images}', f'output={run}', 'data.image_size=32')
    result = attnzoo('train', RECIPE, *arguments, *SHORT, *STILL)
    assert result.code == 0, result
    head = 'all but head.fc.weight, head.fc.bias: its classes are others'
    assert f'starting from the published weights of biformer_tiny, {head}' in result.out
    assert same_but_head(run, official)
    assert config.load(RECIPE).optim.layer_decay and config.load(RECIPE).model.kwargs == {}


def test_a_run_gives_its_weights_and_the_arguments_of_its_model(trained, pets, tmp_path, attnzoo, refused):
    run = tmp_path / 'run'
    arguments = (
        f'model.weights={trained.run}',
        f'data.root={pets}',
        f'output={run}',
        'data.image_size=32',
        *SHORT,
        *STILL,
    )
    result = attnzoo('train', RECIPE, *arguments)
    assert result.code == 0, result
    assert f'starting from {trained.run}/best.safetensors, all but head.fc.weight, head.fc.bias' in result.out
    assert same_but_head(run, parameters(trained.run / 'best.safetensors'))
    _, spec, _ = models.load(str(run))
    _, origin, _ = models.load(str(trained.run))
    assert spec.kwargs == origin.kwargs and spec.classes == ['cat', 'dog']
    # The run's own settings say all that it was built with.
    assert config.load(str(run / 'config.yaml')).model.kwargs == origin.kwargs

    line = refused('train', RECIPE, *arguments, 'model.name=biformer_small', 'resume=never')
    assert line == f'model.weights={trained.run} is of biformer_tiny: say model.name=biformer_tiny'
    line = refused('train', RECIPE, *arguments, 'model.kwargs.depths=[2, 1]', 'resume=never')
    assert 'best.safetensors does not fit BiFormer' in line and 'missing (stages.0.blocks.1' in line


def test_the_classifier_stays_where_the_classes_are_the_same_ones(trained, tmp_path, attnzoo):
    """Three colours again; then three other classes, as many as before."""
    file = tmp_path / 'weights.safetensors'
    shutil.copy(trained.run / 'best.safetensors', file)
    shutil.copytree(trained.images, tmp_path / 'images')
    start = parameters(file)
    for classes, kept in ((('blue', 'green', 'red'), True), (('cat', 'dog', 'owl'), False)):
        if not kept:
            for split in ('train', 'val'):
                for old, new in zip(('blue', 'green', 'red'), classes, strict=True):
                    (tmp_path / 'images' / split / old).rename(tmp_path / 'images' / split / new)
        run = tmp_path / f'run {kept}'
        arguments = (f'model.weights={file}', f'data.root={tmp_path / "images"}', f'output={run}', 'data.image_size=32')
        result = attnzoo('train', RECIPE, *arguments, *SHORT, *STILL)
        assert result.code == 0, result
        assert ('its classes are others' in result.out) != kept
        assert same_but_head(run, start)
        head = parameters(run / 'last.safetensors')['head.fc.weight']
        assert torch.equal(head, start['head.fc.weight']) == kept


def test_a_url_is_fetched_once(pets, tmp_path, attnzoo, refused, serve, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    (tmp_path / 'www').mkdir()
    official = timm.create_model('test_resnet').state_dict()
    torch.save({'state_dict': official}, tmp_path / 'www' / 'my weights.pth')
    url = f'{serve(tmp_path / "www")}/my%20weights.pth'
    arguments = ('model.name=test_resnet', f'data.root={pets}', 'data.image_size=32', *SHORT, *STILL)
    for run in ('a', 'b'):
        result = attnzoo('train', RECIPE, f'model.weights={url}', f'output={tmp_path / run}', *arguments)
        assert result.code == 0, result
        tuned = parameters(tmp_path / run / 'last.safetensors')
        assert all(torch.equal(tuned[key], official[key]) for key in tuned if not key.startswith('fc.'))
        (tmp_path / 'www' / 'my weights.pth').unlink(missing_ok=True)
    [cached] = (tmp_path / 'home' / 'hub' / 'checkpoints').glob('*-my weights.pth')
    assert cached.stat().st_size > 2**20
    line = refused('train', RECIPE, f'model.weights={url}.gone', f'output={tmp_path / "c"}', *arguments)
    assert line == f'cannot download {url}.gone: HTTP Error 404: File not found'


def test_a_run_goes_on_without_the_weights_that_it_started_from(trained, pets, tmp_path, start, stop, attnzoo):
    weights, run = tmp_path / 'weights', tmp_path / 'run'
    shutil.copytree(trained.run, weights)
    settings = (f'model.weights={weights}', f'data.root={pets}', f'output={run}', 'data.image_size=32', *SHORT)
    assert attnzoo('train', RECIPE, *settings, 'train.epochs=2').code == 0
    shutil.rmtree(weights)
    result = attnzoo('train', run / 'config.yaml', 'resume=auto', 'train.epochs=3')
    assert result.code == 0 and 'epoch 3/3' in result.out, result


def test_weights_of_another_shape_name_what_does_not_fit(official, trained, tmp_path, refused, monkeypatch):
    """The recipe of the digits makes a small model: the whole error reaches the user, and what helps."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    (tmp_path / 'hub' / 'checkpoints').mkdir(parents=True)
    safetensors.torch.save_file(official, tmp_path / 'hub' / 'checkpoints' / 'biformer_tiny.in1k.safetensors')
    arguments = (f'data.root={trained.images}', f'output={tmp_path / "run"}', 'model.pretrained=true')
    line = refused('train', 'digits_biformer', *arguments)
    assert line.startswith('cannot create biformer_tiny: Error(s) in loading state_dict for BiFormer: ')
    assert 'Unexpected key(s) in state_dict: ' in line and 'size mismatch for stem.conv1.weight: ' in line
    assert line.endswith(
        'model.kwargs={} builds the model that they are of, model.weights=FILE starts from a file of yours'
    )
    assert len(line) < 700


def test_missing_weights_are_asked_for_in_words_of_the_command_line(trained, tmp_path, refused, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    line = refused('train', RECIPE, f'data.root={trained.images}', f'output={tmp_path / "run"}')
    assert 'Place biformer_tiny_in1k.pth (see ' in line and str(tmp_path) in line
    assert line.endswith('; model.weights=FILE starts from a file of yours') and 'overlay' not in line


def test_broken_weights_start_no_training(trained, tmp_path, refused):
    state = safetensors.torch.load_file(trained.run / 'best.safetensors')
    _, spec, _ = models.load(str(trained.run))
    for name, value, message in (
        ('stem.conv1.weight', torch.nan, 'tensors hold NaN or infinity, the first is stem.conv1.weight'),
        ('stem.conv1.weight', None, '1 missing (stem.conv1.weight)'),
    ):
        broken = {key: tensor.clone() for key, tensor in state.items() if value is not None or key != name}
        if value is not None:
            broken[name].view(-1)[0] = value
        safetensors.torch.save_file(broken, tmp_path / 'broken.safetensors', spec.metadata())
        settings = (f'model.weights={tmp_path / "broken.safetensors"}', f'data.root={trained.images}', *SHORT)
        assert message in refused('train', RECIPE, *settings, f'output={tmp_path / "run"}', 'data.image_size=32')
        assert not (tmp_path / 'run').exists()


def test_another_model_leaves_the_arguments_of_the_recipe_behind(tmp_path, trained, attnzoo, recipe):
    run = tmp_path / 'run'
    arguments = ('train', recipe, f'data.root={trained.images}', f'output={run}', *SHORT, 'data.image_size=64')
    result = attnzoo(*arguments, 'model.name=test_resnet')
    assert result.code == 0, result
    assert result.out.startswith('model.name=test_resnet: left out model.kwargs of biformer_tiny: embed_dims, depths,')
    assert config.load(str(run / 'config.yaml')).model.kwargs == {}
    # Those given with it are its own, and {} clears them for the same model.
    own = config.load(str(recipe), ['model.kwargs.drop_rate=0.1', 'model.name=test_resnet'], tell=lambda _: None)
    assert own.model.kwargs == {'drop_rate': 0.1}
    assert config.load(str(recipe), ['model.kwargs={}']).model.kwargs == {}
    assert config.load(str(recipe), ['model.kwargs={}', 'model.kwargs.regions=2']).model.kwargs == {'regions': 2}
    assert config.load(str(recipe), ['model.name=biformer_tiny']).model.kwargs['regions'] == 2


def test_every_part_of_a_model_but_its_classifier_is_loaded_for_models_of_timm_too(trained, tmp_path, attnzoo):
    """With a norm in its head, and a tuple of classifiers: neither is taken for the other."""
    for name, classifier in (('test_convnext', 'head.fc'), ('test_vit', 'head')):
        torch.manual_seed(1)
        model = timm.create_model(name, num_classes=7, img_size=32) if name == 'test_vit' else timm.create_model(name)
        torch.save(model.state_dict(), tmp_path / 'weights.pth')
        kwargs = 'model.kwargs={img_size: 32}' if name == 'test_vit' else 'model.kwargs={}'
        run = tmp_path / name
        arguments = (f'model.name={name}', f'model.weights={tmp_path / "weights.pth"}', kwargs, 'data.image_size=32')
        result = attnzoo('train', RECIPE, *arguments, f'data.root={trained.images}', f'output={run}', *SHORT, *STILL)
        assert result.code == 0, result
        assert f'all but {classifier}.weight, {classifier}.bias: its classes are others' in result.out
        tuned, begun = parameters(run / 'last.safetensors'), model.state_dict()
        assert all(torch.equal(tuned[key], begun[key]) for key in tuned if not key.startswith(f'{classifier}.'))


def test_what_a_run_says_of_itself_is_shown(trained, attnzoo):
    out = attnzoo('info', trained.run).out
    metrics = [json.loads(line) for line in (trained.run / 'metrics.jsonl').read_text().splitlines()]
    best = max(metrics, key=lambda line: (line['top1'], -line['loss']))
    for fact in ('biformer_tiny', 'embed_dims=[16, 32]', '0.02 M of 13.14 M', '3x32x32', '3: blue, green, red'):
        assert fact in out, out
    assert f'{best["top1"]:g}' in out and str(best['epoch']) in out
    assert attnzoo('info', trained.run / 'last.safetensors').code == 0
