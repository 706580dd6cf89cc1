"""The folder that a run leaves: its settings, surroundings, metrics and checkpoints, each under a fixed name."""

import importlib.metadata
import json
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import attnzoo

from .checkpoint import write_atomically
from .config import Config, to_yaml

PACKAGES = ('torch', 'torchvision', 'timm', 'triton', 'accelerate', 'albumentations', 'numpy', 'pillow', 'safetensors')


class RunFolder:
    """Paths and small files of one run."""

    def __init__(self, path: str):
        self.path = Path(path)
        self.best = self.path / 'best.safetensors'
        self.last = self.path / 'last.safetensors'
        self.state = self.path / 'last.state'
        self.config = self.path / 'config.yaml'
        self.environment = self.path / 'environment.json'
        self.metrics = self.path / 'metrics.jsonl'
        self.summary = self.path / 'summary.json'
        self.curves = self.path / 'curves.png'
        self.confusion = self.path / 'confusion_matrix.png'
        self.wrong = self.path / 'wrong_predictions.png'
        self.events = self.path / 'tensorboard'

    def start(self, config: Config, environment: dict[str, Any], epochs: int, origin: Path | None) -> None:
        """Write the settings, and bring the folder to where the run starts.

        Args:
            epochs: done before, and kept.
            origin: the run folder that this run goes on from; None where it starts anew.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if origin is None:
            shutil.rmtree(self.events, ignore_errors=True)
            for path in (self.best, self.last, self.state, self.metrics):
                path.unlink(missing_ok=True)
        elif origin.resolve() != self.path.resolve():
            before = RunFolder(str(origin))
            for path in (before.best, before.metrics):
                if path.exists():
                    shutil.copy(path, self.path)
        for path in (self.summary, self.curves, self.confusion, self.wrong):
            path.unlink(missing_ok=True)
        # A run that was killed may have told of an epoch that its checkpoint does not know.
        write_atomically(self.metrics, b''.join(_to_line(line) for line in self.read_metrics()[:epochs]))
        write_atomically(self.config, to_yaml(config).encode())
        write_json(self.environment, environment)

    def append_metrics(self, line: dict[str, Any]) -> None:
        write_atomically(self.metrics, self.metrics.read_bytes() + _to_line(line))

    def read_metrics(self) -> list[dict[str, Any]]:
        if not self.metrics.exists():
            return []
        return [json.loads(line) for line in self.metrics.read_text().splitlines()]


def _to_line(content: dict[str, Any]) -> bytes:
    return (json.dumps(content) + '\n').encode()


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=2) + '\n').encode())


def environment(device: str, processes: int) -> dict[str, Any]:
    """Where a run happened: versions, source, command line, device."""
    return {
        'command': command_line(),
        'attnzoo': attnzoo.__version__,
        'git': _git_revision(),
        'python': platform.python_version(),
        'platform': platform.platform(),
        'device': torch.cuda.get_device_name() if device == 'cuda' else f'{device}, {torch.get_num_threads()} threads',
        'processes': processes,
        'packages': {name: version for name in PACKAGES if (version := _version(name))},
    }


def command_line(drop: str | None = None) -> str:
    """The command that runs, without the arguments that begin with `drop`."""
    return shlex.join(['attnzoo', *(word for word in sys.argv[1:] if not (drop and word.startswith(drop)))])


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """The commit of the checkout that attnzoo runs from, with '+' where it has changes; None where it is installed."""
    source = Path(__file__).resolve().parents[1]
    if not (source / '.git').exists():
        return None
    try:
        git = ['git', '-C', str(source)]
        revision = subprocess.run(
            [*git, 'rev-parse', 'HEAD'], capture_output=True, text=True, check=True
        ).stdout.strip()
        changes = subprocess.run([*git, 'status', '--porcelain', '-uno'], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision + ('+' if changes else '')
