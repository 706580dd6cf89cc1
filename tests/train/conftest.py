"""Real images, a real command line, and a model small enough to train in a second."""

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

# Two workers of pytest share the machine's cores; one thread each is also what makes their sums comparable.
torch.set_num_threads(1)

RECIPE = """
model:
  name: biformer_tiny
  kwargs: {embed_dims: [16, 32], depths: [1, 1], mlp_ratios: [1, 1], head_dim: 8, global_heads: 4, regions: 2,
           top_k: [2, null], drop_path_rate: 0.2}
data:
  batch_size: 8
  workers: 0
  image_size: 32
  augment: {scale: [0.6, 1.0], color_jitter: 0.2}
train: {epochs: 2}
optim: {lr: 3.0e-3}
schedule: {warmup_epochs: 0}
"""


@dataclass
class Result:
    code: int
    out: str
    err: str


def forget_accelerators() -> None:
    """Let the next one of this process have settings of its own."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()


@pytest.fixture
def accelerator() -> Accelerator:
    forget_accelerators()
    return Accelerator(cpu=True)


@pytest.fixture
def attnzoo(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command line in this process, past its console script."""
    from attnzoo.train import cli

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, 'argv', ['attnzoo', *map(str, arguments)])
        forget_accelerators()
        capfd.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture
def refused(attnzoo: Callable[..., Result]) -> Callable[..., str]:
    """Run a command that must fail with one line, and return the line."""

    def run(*arguments: str) -> str:
        result = attnzoo(*arguments)
        lines = result.err.strip().splitlines()
        assert result.code == 1 and len(lines) == 1 and lines[0].startswith('attnzoo: '), result
        return lines[0].removeprefix('attnzoo: ')

    return run


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / 'tiny.yaml'
    path.write_text(RECIPE)
    return path


def make_images(root: Path, classes: dict[str, tuple[int, int, int]], train: int = 24, val: int = 8) -> Path:
    """A folder of noisy images, each class around a colour of its own."""
    rng = np.random.default_rng(0)
    for split, count in (('train', train), ('val', val)):
        for name, color in classes.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.asarray(color) + rng.normal(0, 20, (36, 40, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f'{index:02}.png')
    return root


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_images(tmp_path / 'images', {'blue': (40, 40, 200), 'green': (40, 200, 40), 'red': (200, 40, 40)})


@pytest.fixture(scope='session')
def environment() -> dict[str, str]:
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'COLUMNS': '200'}


@dataclass
class Trained:
    run: Path
    images: Path


@pytest.fixture(scope='session')
def trained(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Trained:
    """A finished run on a folder of images of three colours. Several tests read it, so none may change it."""
    folder = tmp_path_factory.mktemp('trained')
    colors = {'blue': (40, 40, 200), 'green': (40, 200, 40), 'red': (200, 40, 40)}
    made = Trained(folder / 'run', make_images(folder / 'images', colors))
    (folder / 'tiny.yaml').write_text(RECIPE)
    command = ['train', folder / 'tiny.yaml', f'data.root={made.images}', f'output={made.run}', 'train.epochs=3']
    subprocess.run([sys.executable, '-m', 'attnzoo', *command], env=environment, check=True, capture_output=True)
    return made


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """Serve a folder over HTTP, and return its address."""
    servers = []

    def run(folder: Path) -> str:
        servers.append(http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(_Quiet, directory=folder)))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f'http://127.0.0.1:{servers[-1].server_port}'

    yield run
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen]]:
    """`python -m attnzoo ...` as a process of its own."""
    started = []

    def run(*arguments: object, module: str = 'attnzoo', **options: Any) -> subprocess.Popen:
        command = [sys.executable, '-m', module, *map(str, arguments)]
        pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
        started.append(subprocess.Popen(command, env=environment, **pipes, **options))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def launch(start: Callable[..., subprocess.Popen]) -> Callable[..., subprocess.Popen]:
    """`attnzoo ...`, or a program, in several processes."""

    def run(processes: int, *arguments: object, program: tuple[str, ...] = ('-m', 'attnzoo')) -> subprocess.Popen:
        options = ('--standalone', '--nproc_per_node', processes)
        return start(*options, *program, *arguments, module='torch.distributed.run')

    return run


@pytest.fixture(scope='session')
def stop() -> Callable[..., Result]:
    """Send a signal to a process once a condition holds, and wait for its end."""

    def run(process: subprocess.Popen, number: signal.Signals, condition: Callable[[], bool]) -> Result:
        deadline = time.monotonic() + 120
        while not condition():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
        return Result(process.returncode, out, err)

    return run
