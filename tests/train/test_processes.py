"""Several processes make one run: they score one model on all images, and hear together of a wish to stop."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from attnzoo.train.launch import _as_typed

# What each of three processes finds, in a file of its own. They have 5, 2 and no batches of four images.
PROGRAM = """
import json, os, signal, sys
import torch
from accelerate import Accelerator
from torch import nn
from attnzoo.train.console import Interruption
from attnzoo.train.data.loading import BadImages
from attnzoo.train.errors import UserError
from attnzoo.train.classification.evaluation import evaluate
from attnzoo.train.processes import Stopped, StopVote, on_main_process, share_buffers

accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
torch.manual_seed(rank)
model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3))
model[1].running_mean.fill_(rank)
share_buffers(model)
batches = [(torch.randn(4, 3, 1, 1), torch.randint(3, (4,)), []) for _ in range((5, 2, 0)[rank])]
found = {'mean': model[1].running_mean.tolist()}


def score(stop_at=None):
    bad = BadImages(0, [], print)
    with Interruption() as interruption:
        vote = StopVote(accelerator, interruption, bad.share)

        def watched():
            for number, batch in enumerate(vote.until_stopped(batches)):
                if number == stop_at:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        return evaluate(model, watched(), 3, accelerator, bad)


scores = score()
found['scores'] = [scores.top1, scores.loss, scores.images, scores.confusion.tolist()]
found['mistakes'] = [[mistake.confidence, mistake.image.flatten().tolist()] for mistake in scores.mistakes]
found['own'] = [image.flatten().tolist() for images, _, _ in batches for image in images]
try:
    score(stop_at=3 if rank == 0 else None)
except Stopped:
    found['stopped'] = True
if rank == 1:
    batches[1][0][0] = float('nan')
try:
    score()
except UserError as error:
    found['error'] = str(error)


def refuse():
    raise UserError('no')


try:
    on_main_process(accelerator, refuse)
except UserError as error:
    found['refused'] = str(error)
except SystemExit as end:
    found['refused'] = end.code
with open(os.path.join(sys.argv[1], f'{rank}.json'), 'w') as file:
    json.dump(found, file)
accelerator.end_training()
"""


@pytest.fixture(scope='module')
def found(tmp_path_factory, environment) -> list[dict]:
    folder = tmp_path_factory.mktemp('processes')
    (folder / 'program.py').write_text(PROGRAM)
    launcher = (sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '3')
    command = (*launcher, str(folder / 'program.py'), str(folder))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done
    return [json.loads((folder / f'{rank}.json').read_text()) for rank in range(3)]


def test_a_launcher_is_shown_as_it_is_typed(tmp_path, monkeypatch):
    torchrun = tmp_path / 'torchrun'
    torchrun.write_text('#!/bin/sh')
    torchrun.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path))
    words = ['--nproc_per_node', '2', '-m', 'attnzoo']
    assert _as_typed([sys.executable, str(torchrun), *words]) == ['torchrun', *words]
    # Another Python than the one that the shell finds.
    assert _as_typed([sys.executable, '-m', 'torch.distributed.run']) == [sys.executable, '-m', 'torch.distributed.run']


def test_all_have_the_buffers_of_the_main_process(found):
    assert [own['mean'] for own in found] == [[0, 0, 0]] * 3


def test_all_have_the_scores_of_all_images(found):
    assert found[0]['scores'] == found[1]['scores'] == found[2]['scores'] and found[0]['scores'][2] == 28


def test_mistakes_are_those_of_all_processes(found):
    assert found[0]['mistakes'] == found[1]['mistakes'] == found[2]['mistakes']
    shown = [image for _, image in found[0]['mistakes']]
    assert any(image in found[0]['own'] for image in shown) and any(image in found[1]['own'] for image in shown)
    confidences = [confidence for confidence, _ in found[0]['mistakes']]
    assert confidences == sorted(confidences, reverse=True)


def test_a_wish_to_stop_reaches_those_that_have_scored_their_share(found):
    assert [own.get('stopped') for own in found] == [True] * 3


def test_what_is_no_number_in_one_process_ends_all(found):
    assert all(own['error'].startswith('the model gives NaN for 1 of 28 held-out images: ') for own in found)


def test_an_error_of_the_main_process_is_said_once(found):
    assert [own['refused'] for own in found] == ['no', 1, 1]


def test_the_scores_of_a_run_are_those_of_the_weights_that_it_saves(recipe, images, tmp_path: Path, launch, attnzoo):
    """BatchNorm's statistics differ from process to process until they are shared, and so would the scores."""
    run = tmp_path / 'run'
    settings = ('device=cpu', 'model.name=test_resnet', 'data.batch_size=4', 'optim.lr=0.01')
    process = launch(2, 'train', recipe, f'data.root={images}', f'output={run}', *settings)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, (out, err)
    lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    summary = json.loads((run / 'summary.json').read_text())
    assert [line['update'] for line in lines] == [9, 18] and summary['images'] == 24
    assert summary['loss'] == pytest.approx(lines[summary['best_epoch'] - 1]['loss'])
    scored = attnzoo('eval', run)
    assert float(re.search(r'loss\W+([\d.]+)', scored.out)[1]) == pytest.approx(summary['loss'], abs=2e-4)
