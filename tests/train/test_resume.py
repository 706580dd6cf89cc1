"""A run that stops, by whatever hand, goes on to the same bits as one that does not."""

import json
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from attnzoo.train.checkpoint import load_state, save_state
from attnzoo.train.classification import task
from attnzoo.train.data import loading
from attnzoo.train.errors import program

# Everything that draws random numbers, and everything that a step carries over to the next.
EVERYTHING = (
    *('train.epochs=4', 'train.ema=0.9', 'train.grad_accum=2', 'train.clip=1', 'data.batch_size=4'),
    *('data.augment.mixup=0.8', 'data.augment.cutmix=1.0', 'data.augment.erase=0.3', 'schedule.warmup_epochs=1'),
)
TIMM = 'data.augment.auto_augment=rand-m9-mstd0.5-inc1'
ALBUMENTATIONS = ('data.augment.backend=albumentations', 'data.augment.rotate=20')


def flat(value: Any, prefix: str = '') -> dict[str, Any]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {name: leaf for key, item in items for name, leaf in flat(item, f'{prefix}.{key}').items()}
    return {prefix: value}


def assert_same_end(run: Path, other: Path):
    """Weights, their average, the optimiser's state, the progress and the metrics: equal to the bit."""
    one, two = (flat(load_state(path / 'last.state')) for path in (run, other))
    assert one.keys() == two.keys() and any('exp_avg' in key for key in one)
    for key, value in one.items():
        if key == '.progress.seconds' or key.startswith(('.config.output', '.config.resume', '.config.data.workers')):
            continue
        assert torch.equal(value, two[key]) if isinstance(value, torch.Tensor) else value == two[key], key
    timed = {'seconds', 'images_per_second'}
    lines = [[json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()] for path in (run, other)]
    assert len(lines[0]) == 4
    for first, second in zip(*lines, strict=True):
        assert {key: first[key] for key in first.keys() - timed} == {key: second[key] for key in second.keys() - timed}
    assert (run / 'best.safetensors').read_bytes() == (other / 'best.safetensors').read_bytes()


def lines_of(run: Path) -> int:
    path = run / 'metrics.jsonl'
    return path.read_text().count('\n') if path.exists() else 0


@pytest.fixture
def arguments(recipe: Path, images: Path) -> tuple[str, ...]:
    return ('train', str(recipe), f'data.root={images}', *EVERYTHING)


@pytest.mark.parametrize(('augment', 'workers'), [((TIMM,), 0), ((TIMM,), 2), (ALBUMENTATIONS, 0)])
def test_ctrl_c_in_an_epoch_and_resume_end_with_the_same_bits(
    augment, workers, arguments, tmp_path, start, stop, attnzoo
):
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    assert attnzoo(*arguments, *augment, f'output={whole}').code == 0
    command = (*arguments, *augment, f'output={broken}', f'data.workers={workers}')
    stopped = stop(start(*command), signal.SIGINT, lambda: lines_of(broken) >= 1)
    assert stopped.code == 130, stopped
    last = stopped.out.strip().splitlines()[-2:]
    assert last[0].startswith('stopped in epoch ') and last[1].startswith(f'to go on: {program()} train '), stopped
    assert last[1].endswith('resume=auto')
    progress = load_state(broken / 'last.state')['progress']
    assert progress['batch'] > 0, progress  # in the middle of an epoch
    assert progress['epoch'] < 4
    resumed = attnzoo(*command)
    assert resumed.code == 0 and f'going on from {broken}: epoch {progress["epoch"] + 1}' in resumed.out
    assert_same_end(whole, broken)


class Interrupting:
    """Held-out batches that send Ctrl-C to this process while they are scored for the n-th time."""

    def __init__(self, batches: Iterable, number: int):
        self.batches, self.left = batches, number

    def __iter__(self) -> Iterator:
        self.left -= 1
        for batch in self.batches:
            yield batch
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def interrupted(attnzoo, monkeypatch) -> Callable[..., Any]:
    """Run a command in this process, and interrupt it in the n-th scoring."""

    def run(*arguments: str, number: int = 2) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr(task, 'eval_loader', lambda *args: Interrupting(loading.eval_loader(*args), number))
            stopped = attnzoo(*arguments)
        assert stopped.code == 130, stopped
        return stopped

    return run


@pytest.mark.parametrize('scoring', ['of an epoch', 'of the last weights', 'of the best'])
def test_ctrl_c_while_scoring_loses_nothing(scoring, arguments, tmp_path, attnzoo, interrupted):
    """Four epochs, then the last weights without their average, then the best."""
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    assert attnzoo(*arguments, f'output={whole}').code == 0
    number = {'of an epoch': 2, 'of the last weights': 5, 'of the best': 6}[scoring]
    stopped = interrupted(*arguments, f'output={broken}', number=number)
    progress = load_state(broken / 'last.state')['progress']
    if scoring == 'of an epoch':
        assert 'stopped in epoch 2 after batch 18 of 18, and saved' in stopped.out, stopped
        assert (progress['epoch'], progress['batch']) == (1, 18)
    else:
        assert 'all epochs are done and saved' in stopped.out, stopped
        assert progress['epoch'] == 4 and not (broken / 'summary.json').exists()
    assert attnzoo(*arguments, f'output={broken}').code == 0
    assert_same_end(whole, broken)
    lines = [json.loads(line) for line in (broken / 'metrics.jsonl').read_text().splitlines()]
    assert all(line['images_per_second'] > 1 for line in lines)  # of the epoch, not of what was left of it
    summaries = [json.loads((run / 'summary.json').read_text()) for run in (whole, broken)]
    assert (
        summaries[0]['top1'] == summaries[1]['top1'] and summaries[0]['last_raw_top1'] == summaries[1]['last_raw_top1']
    )


def test_a_killed_run_goes_on_from_its_last_checkpoint(arguments, tmp_path, start, stop, attnzoo):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    assert attnzoo(*arguments, f'output={whole}').code == 0
    process = start(*arguments, f'output={killed}', 'data.workers=1')
    assert stop(process, signal.SIGKILL, lambda: lines_of(killed) >= 2).code == -signal.SIGKILL
    assert load_state(killed / 'last.state')['progress']['epoch'] >= 1
    assert attnzoo(*arguments, f'output={killed}').code == 0
    assert_same_end(whole, killed)


def test_a_run_goes_on_in_another_folder(arguments, tmp_path, start, stop, attnzoo):
    first, second, whole = tmp_path / 'first', tmp_path / 'second', tmp_path / 'whole'
    process = start(*arguments, f'output={first}')
    assert stop(process, signal.SIGTERM, lambda: lines_of(first) >= 1).code == 130
    before = (first / 'last.state').read_bytes()
    assert attnzoo(*arguments, f'output={second}', f'resume={first}').code == 0
    assert attnzoo(*arguments, f'output={whole}').code == 0
    assert_same_end(whole, second)
    assert (first / 'last.state').read_bytes() == before


def test_two_processes_go_on_by_the_command_that_they_print(arguments, tmp_path, launch, stop, environment):
    """With BatchNorm, whose statistics each process counts on images of its own."""
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    settings = (*arguments, 'model.name=test_resnet', 'device=cpu', 'train.grad_accum=1')
    process = launch(2, *settings, f'output={whole}')
    assert process.communicate(timeout=200)[0].count('epoch 4/4') == 1 and process.returncode == 0
    assert json.loads((whole / 'environment.json').read_text())['processes'] == 2

    stopped = stop(launch(2, *settings, f'output={broken}'), signal.SIGTERM, lambda: lines_of(broken) >= 1)
    last = stopped.out.strip().splitlines()[-2:]
    assert last[0].startswith('stopped in epoch ') and last[1].startswith('to go on: '), stopped
    assert load_state(broken / 'last.state')['progress']['epoch'] < 4
    command = last[1].removeprefix('to go on: ')
    assert ' -m torch.distributed.run --standalone --nproc_per_node 2 -m attnzoo train ' in command
    pasted = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, timeout=200)
    assert pasted.returncode == 0 and f'going on from {broken}: ' in pasted.stdout, pasted
    assert_same_end(whole, broken)


def test_a_full_disk_ends_the_run_with_one_line_and_its_checkpoint_intact(
    arguments, tmp_path, start, interrupted, attnzoo
):
    """The operating system refuses files above 24 KiB, as it refuses any on a full disk."""
    run = tmp_path / 'run'
    interrupted(*arguments, f'output={run}')
    before = {name: (run / name).read_bytes() for name in ('last.state', 'last.safetensors', 'best.safetensors')}
    process = start(
        *arguments,
        f'output={run}',
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (24 * 1024, 24 * 1024)),
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, (out, err)
    assert err.strip().count('\n') == 0 and err.startswith(f'attnzoo: cannot write {run}/'), err
    assert 'what was saved before is intact' in err
    assert {name: (run / name).read_bytes() for name in before} == before
    assert not list(run.glob('*.part'))
    assert attnzoo(*arguments, f'output={run}').code == 0


def test_settings_that_matter_may_not_change_between_the_halves(arguments, tmp_path, interrupted, attnzoo, refused):
    run = tmp_path / 'run'
    interrupted(*arguments, f'output={run}')
    assert 'train.epochs=4 (now 6)' in refused(*arguments, f'output={run}', 'train.epochs=6')
    line = refused(*arguments, f'output={run}', 'seed=1', 'optim.lr=0.1')
    assert f'{run} was begun with seed=0 (now 1), optim.lr=0.003 (now 0.1): ' in line
    assert 'resume=never starts it over' in line
    assert f'resume={tmp_path}/no: no last.state in it' in refused(*arguments, f'resume={tmp_path}/no')
    assert attnzoo(*arguments, f'output={run}', 'seed=1', 'resume=never').code == 0
    assert lines_of(run) == 4
    finished = attnzoo(*arguments, f'output={run}', 'seed=1')
    assert finished.code == 0 and 'has done its 4 epochs; resume=never starts it over' in finished.out


def test_arguments_of_the_model_that_are_added_or_taken_away_are_noticed(recipe, images, tmp_path, attnzoo, refused):
    run = tmp_path / 'run'
    arguments = ('train', recipe, f'data.root={images}', f'output={run}')
    assert attnzoo(*arguments, 'model.kwargs.drop_rate=0.1').code == 0
    assert 'model.kwargs.drop_rate=0.1 (now not there)' in refused(*arguments)
    added = refused(*arguments, 'model.kwargs.drop_rate=0.1', 'model.kwargs.in_chans=3')
    assert 'was begun with model.kwargs.in_chans=not there (now 3): ' in added


def test_a_setting_that_an_older_version_did_not_have_is_as_it_was_then(recipe, images, tmp_path, attnzoo, refused):
    run = tmp_path / 'run'
    arguments = ('train', recipe, f'data.root={images}', f'output={run}')
    assert attnzoo(*arguments).code == 0
    state = load_state(run / 'last.state')
    del state['config']['train']['grad_checkpointing'], state['config']['detection']
    save_state(run / 'last.state', state)
    line = refused(*arguments, 'train.epochs=3', 'train.grad_checkpointing=true')
    assert 'was begun with train.grad_checkpointing=False (now True): ' in line
    assert attnzoo(*arguments, 'train.epochs=3').code == 0


def test_a_run_knows_its_data_wherever_it_lies(recipe, images, tmp_path, attnzoo, refused):
    run, moved = tmp_path / 'run', tmp_path / 'moved'
    arguments = ('train', recipe, f'output={run}')
    assert attnzoo(*arguments, f'data.root={images}').code == 0
    before = (run / 'summary.json').read_bytes()
    images.rename(moved)
    finished = attnzoo(*arguments, f'data.root={moved}')
    assert finished.code == 0 and 'has done its 2 epochs' in finished.out

    image = Image.open(moved / 'train' / 'red' / '00.png')
    image.save(moved / 'train' / 'red' / 'more.png')
    line = refused(*arguments, f'data.root={moved}')
    assert f"{run} was begun with other data than data.root='{moved}': training images 72, now 73; " in line
    assert 'output=DIR leaves it alone, resume=never starts it over' in line
    (moved / 'train' / 'red' / 'more.png').unlink()

    (moved / 'train' / 'red').rename(moved / 'train' / 'rose')
    (moved / 'val' / 'red').rename(moved / 'val' / 'rose')
    assert '3 classes, now 3: red is gone and rose is new' in refused(*arguments, f'data.root={moved}')
    # The run of the digits, with their ten classes and no folder.
    assert 'format folder, now digits; 3 classes, now 10: ' in refused(*arguments)
    assert (run / 'summary.json').read_bytes() == before


def test_a_run_of_other_data_is_not_gone_on_with(arguments, images, tmp_path, interrupted, refused):
    run = tmp_path / 'run'
    interrupted(*arguments, f'output={run}')
    before = (run / 'last.state').read_bytes()
    (images / 'val' / 'red' / '00.png').unlink()
    assert 'held-out images 24, now 23; ' in refused(*arguments, f'output={run}')
    assert (run / 'last.state').read_bytes() == before


def test_a_finished_run_can_be_made_longer_and_not_shorter(recipe, images, tmp_path, attnzoo, refused):
    run = tmp_path / 'run'
    arguments = ('train', recipe, f'data.root={images}', f'output={run}')
    assert attnzoo(*arguments).code == 0
    first = (run / 'metrics.jsonl').read_text()
    longer = attnzoo(*arguments, 'train.epochs=3')
    assert longer.code == 0, longer
    # A third of the cosine is left from here, instead of its end.
    assert '2 epochs become 3: the learning rate follows the longer schedule from here, at 0.000758' in longer.out
    lines = (run / 'metrics.jsonl').read_text()
    assert lines.startswith(first) and lines_of(run) == 3 and json.loads(lines.splitlines()[-1])['update'] == 27
    assert json.loads((run / 'summary.json').read_text())['epochs'] == 3
    again = attnzoo(*arguments, 'train.epochs=3')
    assert again.code == 0 and 'has done its 3 epochs' in again.out
    assert 'train.epochs=3 (now 2)' in refused(*arguments)


def test_a_second_ctrl_c_quits_at_once(arguments, tmp_path, start):
    run = tmp_path / 'run'
    # So many batches make one step that the first Ctrl-C cannot be granted for minutes.
    process = start(*arguments, f'output={run}', 'data.batch_size=36', 'train.grad_accum=2000', 'log.seconds=0.1')
    assert any(line.startswith('epoch 1/4  ') for line in process.stdout)
    process.send_signal(signal.SIGINT)
    assert any('Ctrl-C again quits at once' in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert load_state(run / 'last.state')['progress']['update'] == 0  # as it was saved before the first step
