"""The main job from end to end: what it learns, what it leaves, what its run folder is good for."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from attnzoo.train import config, models
from attnzoo.train.checkpoint import load_state, save_state
from attnzoo.train.data import loading
from attnzoo.train.errors import program

DIGITS = 'classification/digits_biformer'


def summary_of(run: Path) -> dict:
    return json.loads((run / 'summary.json').read_text())


@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_the_packaged_recipe_reaches_97_percent(seed: int, tmp_path: Path, attnzoo):
    result = attnzoo('train', DIGITS, f'seed={seed}', f'output={tmp_path / "run"}')
    assert result.code == 0, result
    assert summary_of(tmp_path / 'run')['top1'] >= 97.0


def test_a_short_run_on_digits_leaves_everything(tmp_path: Path, attnzoo):
    """Five epochs of the packaged recipe instead of all: it need only be far above the 10 % of chance."""
    run = tmp_path / 'run'
    result = attnzoo('train', DIGITS, f'output={run}', 'train.epochs=5', 'schedule.warmup_epochs=1')
    assert result.code == 0, result
    assert sum(line.startswith('epoch ') for line in result.out.splitlines()) == 5
    summary = summary_of(run)
    assert 80 < summary['top1'] < summary['top5'] <= 100
    assert f'{summary["top1"]:.2f} %' in result.out and f'look at {run}: curves.png' in result.out
    assert summary['images'] == 360 and summary['images_per_second'] > 10
    assert summary['peak_memory_bytes'] > 2**26 and summary['bad_images'] == []

    lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    assert [line['epoch'] for line in lines] == [1, 2, 3, 4, 5] and lines[-1]['update'] == 5 * 22
    assert lines[-1]['train_loss'] < lines[0]['train_loss'] and lines[0]['lr'] > lines[-1]['lr'] > 0
    assert summary['top1'] == max(line['top1'] for line in lines) == lines[summary['best_epoch'] - 1]['top1']

    assert config.load(str(run / 'config.yaml')) == config.load(
        DIGITS, [f'output={run}', 'train.epochs=5', 'schedule.warmup_epochs=1']
    )
    environment = json.loads((run / 'environment.json').read_text())
    assert environment['packages']['torch'] == torch.__version__.split('+')[0]
    assert environment['command'].startswith(f'{program()} train {DIGITS} output=')
    for name in ('curves.png', 'confusion_matrix.png', 'wrong_predictions.png'):
        with Image.open(run / name) as picture:
            assert min(picture.size) > 300 and np.asarray(picture.convert('L')).std() > 5, name
    events = EventAccumulator(str(run / 'tensorboard'))
    events.Reload()
    assert [event.value for event in events.Scalars('top1')] == pytest.approx([line['top1'] for line in lines])

    scored = attnzoo('eval', run)
    assert scored.code == 0 and f'{summary["top1"]:.2f} %' in scored.out, scored
    half = attnzoo('eval', run, 'data.batch_size=7', 'precision=bf16')
    assert half.code == 0 and '360' in half.out, half

    held_out = loading.Digits('validation')
    right = 0
    for index in range(20):
        image, label = held_out[index]
        image.save(tmp_path / 'digit.png')
        predicted = attnzoo('predict', run, tmp_path / 'digit.png')
        assert predicted.code == 0
        name, best, *rest = predicted.out.splitlines()
        assert name == str(tmp_path / 'digit.png') and len(rest) == 4
        right += best.split('%')[1].strip() == str(label)
    assert right >= 12

    (tmp_path / 'broken.png').write_bytes(b'no image')
    broken = attnzoo('predict', run, tmp_path / 'broken.png')
    assert broken.code == 1 and broken.err.startswith(f'attnzoo: cannot read image {tmp_path}/broken.png: ')


def test_a_folder_of_images_trains_by_the_same_command(images: Path, tmp_path: Path, attnzoo, recipe: Path):
    run = tmp_path / 'run'
    arguments = ('train', recipe, f'data.root={images}', f'output={run}', 'train.epochs=3')
    assert attnzoo(*arguments, 'data.augment.backend=albumentations', 'data.workers=1').code == 0
    assert summary_of(run)['top1'] > 60
    _, spec, _ = models.load(str(run))
    assert spec.classes == ['blue', 'green', 'red'] and spec.num_classes == 3
    assert 'red' in attnzoo('predict', run, images / 'val' / 'red' / '00.png').out.splitlines()[1]


def test_fine_tuning_starts_from_the_weights_with_a_head_of_its_own(images, tmp_path, attnzoo, recipe):
    kwargs = config.load(str(recipe)).model.kwargs
    torch.manual_seed(7)
    trained = timm.create_model('biformer_tiny', num_classes=1000, **kwargs)
    safetensors.torch.save_file(trained.state_dict(), tmp_path / 'weights.safetensors')
    run = tmp_path / 'run'
    result = attnzoo(
        *('train', recipe, f'data.root={images}', f'output={run}', 'train.epochs=1', 'model.pretrained=true'),
        *(f'model.kwargs.pretrained_cfg_overlay.file={tmp_path / "weights.safetensors"}', 'optim.lr=0'),
        'schedule.min_lr=0',
    )
    assert result.code == 0, result
    tuned = safetensors.torch.load_file(run / 'best.safetensors')
    assert tuned['head.fc.weight'].shape == (3, 32)
    parameters = dict(trained.named_parameters())
    same = [torch.equal(tuned[key], value) for key, value in parameters.items() if not key.startswith('head.')]
    assert len(same) > 20 and all(same)
    assert attnzoo('eval', run).code == 0


def test_steps_follow_batch_accumulation_and_schedule(images, tmp_path, attnzoo, recipe):
    run = tmp_path / 'run'
    arguments = ('train', recipe, f'data.root={images}', f'output={run}', 'train.grad_accum=3', 'data.batch_size=8')
    assert attnzoo(*arguments, 'optim.lr_batch_size=48', 'schedule.name=constant', 'optim.lr=0.002').code == 0
    lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    assert [line['update'] for line in lines] == [3, 6]
    assert lines[-1]['lr'] == pytest.approx(0.002 * 8 * 3 / 48)


def test_a_loss_that_diverges_ends_the_run_with_one_line(images, tmp_path, recipe, refused, attnzoo):
    run = tmp_path / 'run'
    arguments = ('train', recipe, f'data.root={images}', f'output={run}')
    line = refused(*arguments, 'optim.name=sgd', 'optim.lr=1e18', 'schedule.name=constant')
    assert line.startswith('the training loss is ') and ' in epoch 1: try a lower optim.lr' in line
    assert line.endswith('with resume=never or another output=DIR')  # nothing of it is worth keeping

    assert attnzoo(*arguments, 'resume=never').code == 0
    state = load_state(run / 'last.state')
    state['model']['head.fc.bias'].fill_(float('nan'))
    save_state(run / 'last.state', state)
    later = refused(*arguments, 'train.epochs=3')
    assert later.startswith('the training loss is nan in epoch 3: ')
    assert later.endswith(f'; {run} keeps its checkpoint of epoch 2')


def test_gradients_are_not_clipped_at_zero(images, tmp_path, attnzoo, recipe):
    weights = []
    for clip in ('null', '0', '0.1'):
        run = tmp_path / clip
        assert attnzoo('train', recipe, f'data.root={images}', f'output={run}', f'train.clip={clip}').code == 0
        weights.append((run / 'best.safetensors').read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_the_learning_rate_in_the_metrics_is_that_of_the_head(images, tmp_path, attnzoo, recipe):
    run = tmp_path / 'run'
    arguments = ('train', recipe, f'data.root={images}', f'output={run}', 'optim.layer_decay=0.5', 'train.epochs=1')
    assert attnzoo(*arguments, 'schedule.name=constant', 'optim.lr=0.002').code == 0
    assert json.loads((run / 'metrics.jsonl').read_text())['lr'] == 0.002


def test_a_batch_far_from_that_of_the_recipe_is_one_line(images, tmp_path, attnzoo, recipe):
    arguments = ('train', recipe, f'data.root={images}', f'output={tmp_path}/run', 'optim.recipe_batch_size=24')
    warning = 'a step sees 8 images (8 x 1 processes x 1 batches), and this recipe is for 24: '
    assert f'{warning}train.grad_accum=3 keeps to it' in attnzoo(*arguments).out
    assert 'this recipe is for' not in attnzoo(*arguments, 'resume=never', 'train.grad_accum=3').out
    large = attnzoo(*arguments, 'resume=never', 'optim.recipe_batch_size=3').out
    assert 'this recipe is for 3: a smaller data.batch_size keeps to it' in large


def test_a_run_with_an_average_scores_its_last_weights_too(images, tmp_path, attnzoo, recipe):
    """The average lags so far behind that after two epochs it is still the random model; the weights are not."""
    run = tmp_path / 'run'
    arguments = ('train', recipe, f'data.root={images}', f'output={run}', 'train.ema=0.9999', 'train.ema_warmup=false')
    assert attnzoo(*arguments).code == 0
    summary = summary_of(run)
    assert summary['last_raw_top1'] > 90 > summary['top1']
    scored = attnzoo('eval', run / 'last.safetensors', f'data.root={images}')
    assert f'{summary["last_raw_top1"]:.2f} %' in scored.out, scored


def test_outputs_beyond_the_class_folders_have_numbers(images, tmp_path, attnzoo, recipe):
    run = tmp_path / 'run'
    result = attnzoo('train', recipe, f'data.root={images}', f'output={run}', 'model.num_classes=5')
    assert result.code == 0, result
    _, spec, _ = models.load(str(run))
    assert spec.classes == ['blue', 'green', 'red', 'class 3', 'class 4']


def test_one_class_is_refused_before_the_first_step(images, tmp_path, recipe, refused):
    for name in ('blue', 'green'):
        for split in ('train', 'val'):
            shutil.rmtree(images / split / name)
    line = refused('train', recipe, f'data.root={images}', f'output={tmp_path}/run')
    assert line == 'one class (red): a classifier needs at least two'


def test_a_model_with_tied_weights_trains_and_is_loaded(images, tmp_path, attnzoo, recipe):
    run = tmp_path / 'run'
    kwargs = '{img_size: 32, embed_dims: [16, 16, 16, 16], serial_depths: [1, 2, 1, 1]}'
    arguments = ('train', recipe, f'data.root={images}', f'output={run}', 'train.epochs=1')
    result = attnzoo(*arguments, 'model.name=coat_lite_tiny', f'model.kwargs={kwargs}')
    assert result.code == 0, result
    model, _, _ = models.load(str(run))
    assert model.cpe2.proj.weight is model.serial_blocks2[1].cpe.proj.weight
    assert attnzoo('eval', run).code == 0


def test_the_same_seed_gives_the_same_run_and_another_does_not(images, tmp_path, attnzoo, recipe):
    weights = []
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        run = tmp_path / name
        assert attnzoo('train', recipe, f'data.root={images}', f'output={run}', f'seed={seed}').code == 0
        weights.append((run / 'best.safetensors').read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_a_model_of_timm_is_scored_by_name(images, attnzoo, tmp_path, monkeypatch):
    """Weights placed where a download would put them; three folders are of its 1000 classes."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    for split in ('train', 'val'):
        for name, known in (('blue', 'tench'), ('green', 'goldfish'), ('red', 'hen')):
            (images / split / name).rename(images / split / known)
    folder = tmp_path / 'home' / 'hub' / 'checkpoints'
    folder.mkdir(parents=True)
    weights = timm.create_model('biformer_tiny').state_dict()
    safetensors.torch.save_file(weights, folder / 'biformer_tiny.in1k.safetensors')
    result = attnzoo('eval', 'biformer_tiny', f'data.root={images}', 'data.batch_size=8', 'data.workers=0')
    assert result.code == 0, result
    assert 'biformer_tiny, pretrained' in result.out and '24' in result.out
