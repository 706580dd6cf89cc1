"""The folder of a run: whose it is, what is lost in it and what is not, and where it can be."""

import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from attnzoo.train.checkpoint import load_state, save_state


@pytest.fixture
def arguments(recipe: Path, images: Path) -> tuple[str, ...]:
    return ('train', str(recipe), f'data.root={images}')


def test_two_runs_do_not_share_a_folder(arguments, tmp_path, start, attnzoo, refused):
    run = tmp_path / 'run'
    # With a worker: it outlives its parent for a moment, and must not hold the folder then.
    long = start(*arguments, f'output={run}', 'train.epochs=10000', 'data.workers=1')
    assert any(line.startswith('epoch 1/') for line in long.stdout)
    line = refused(*arguments, f'output={run}')
    assert f'{run} is in use by process {long.pid} on {socket.gethostname()} since 20' in line
    assert line.endswith('; output=DIR writes elsewhere')
    assert long.poll() is None and load_state(run / 'last.state')['config']['train']['epochs'] == 10000

    long.send_signal(signal.SIGKILL)
    long.wait()
    done = attnzoo(*arguments, f'output={run}', 'resume=never')
    assert done.code == 0, done
    assert (run / 'summary.json').exists() and not (run / 'running.json').exists()


@pytest.mark.parametrize(
    ('place', 'reason'),
    [
        ('/proc/attnzoo/run', 'No such file or directory'),
        ('{tmp}/file', 'there is a file of that name'),
        ('{tmp}/file/run', 'Not a directory'),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line_before_any_work(place, reason, recipe, tmp_path, refused):
    (tmp_path / 'file').write_text('mine')
    output = place.format(tmp=tmp_path)
    line = refused('train', recipe, 'data.root=/nowhere', f'output={output}')
    assert line == f'output={output}: cannot write there: {reason}; output=DIR writes elsewhere'
    assert (tmp_path / 'file').read_text() == 'mine'


def test_a_run_that_is_refused_leaves_no_folder(arguments, tmp_path, refused):
    refused(*arguments, f'output={tmp_path}/run', 'model.name=biformer_huge')
    assert not (tmp_path / 'run').exists()
    (tmp_path / 'mine').mkdir()
    refused(*arguments, f'output={tmp_path}/mine', 'model.name=biformer_huge')
    assert (tmp_path / 'mine').is_dir()


def test_a_folder_without_its_state_is_not_wiped(arguments, tmp_path, attnzoo, refused):
    run = tmp_path / 'run'
    assert attnzoo(*arguments, f'output={run}').code == 0
    (run / 'last.state').unlink()
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    line = refused(*arguments, f'output={run}')
    assert line == (
        f'{run} holds best.safetensors, last.safetensors, metrics.jsonl, but no last.state to go on from: '
        'output=DIR leaves it alone, resume=never starts it over'
    )
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before

    over = attnzoo(*arguments, f'output={run}', 'resume=never')
    assert over.code == 0
    lost = 'best.safetensors, last.safetensors, metrics.jsonl'
    assert f'{run} is started over, without the {lost} of the run before' in over.out


def test_the_settings_in_a_run_folder_do_not_start_it_over(arguments, tmp_path, attnzoo):
    run = tmp_path / 'run'
    assert attnzoo(*arguments, f'output={run}', 'resume=never').code == 0
    before = (run / 'last.state').read_bytes()
    again = attnzoo('train', run / 'config.yaml')
    assert again.code == 0 and 'has done its 2 epochs' in again.out
    assert (run / 'last.state').read_bytes() == before
    copy = attnzoo('train', run / 'config.yaml', f'output={tmp_path}/copy')
    assert copy.code == 0
    assert (tmp_path / 'copy' / 'best.safetensors').read_bytes() == (run / 'best.safetensors').read_bytes()


def test_a_run_that_cannot_be_saved_ends_before_its_first_step_and_leaves_the_run_before(
    arguments, tmp_path, attnzoo, start
):
    run = tmp_path / 'run'
    assert attnzoo(*arguments, f'output={run}').code == 0
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    process = start(
        *arguments,
        *(f'output={run}', 'resume=never', 'train.epochs=10000'),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (24 * 1024, 24 * 1024)),
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and err.startswith(f'attnzoo: cannot write {run}/last.safetensors'), (out, err)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_a_closed_pipe_ends_the_run_with_its_checkpoint(arguments, tmp_path, start, attnzoo):
    """As `attnzoo train ... | head -1` does."""
    run = tmp_path / 'run'
    process = start(*arguments, f'output={run}', 'train.epochs=10000')
    assert process.stdout.readline().startswith('biformer_tiny, ')
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=120) == 141, err
    assert 'Error' not in err and 'Traceback' not in err, err
    stopped, go_on = err.strip().splitlines()[-2:]
    assert stopped.startswith('stopped in epoch 2 after batch ') and go_on.startswith('to go on: '), err
    assert load_state(run / 'last.state')['progress']['epoch'] == 1
    assert len((run / 'metrics.jsonl').read_text().splitlines()) == 1


def test_a_state_of_another_version_is_refused(arguments, tmp_path, attnzoo, refused):
    run = tmp_path / 'run'
    assert attnzoo(*arguments, f'output={run}').code == 0
    state = load_state(run / 'last.state')
    del state['data']
    save_state(run / 'last.state', state)
    line = refused(*arguments, f'output={run}', 'train.epochs=3')
    assert line.startswith(f'{run}/last.state is of another version of attnzoo')


def test_the_trainer_imports_nothing_that_windows_lacks():
    # psutil takes another module of its own there.
    program = """
import sys, accelerate, psutil
sys.modules['resource'] = sys.modules['fcntl'] = None
import attnzoo.train.classification.task
"""
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
