"""The folder that a run leaves: its settings, surroundings, metrics and checkpoints, each under a fixed name."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import torch
from filelock import FileLock, Timeout

import attnzoo

from .checkpoint import write_atomically
from .config import Config, to_yaml
from .errors import UserError
from .launch import command_line

PACKAGES = (
    *('torch', 'torchvision', 'timm', 'triton', 'accelerate', 'albumentations'),
    *('numpy', 'pillow', 'safetensors', 'faster-coco-eval', 'transformers'),
)


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
        self.precision = self.path / 'precision_recall.png'
        self.detections = self.path / 'detections.png'
        self.events = self.path / 'tensorboard'
        self.holder = self.path / 'running.json'  # who works here, while somebody does
        self.pictures = [self.curves, self.confusion, self.wrong, self.precision, self.detections]
        self._lock = FileLock(self.path / '.lock')
        self._made = False

    def claim(self) -> None:
        """Make the folder and keep other runs out of it: until `release`, or until this process ends, however it ends.

        Raises:
            UserError: the folder cannot be written, or another run is at work in it.
        """
        try:
            self._made = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            self._acquire()
            facts = {'pid': os.getpid(), 'host': socket.gethostname(), 'since': f'{datetime.now():%Y-%m-%d %H:%M:%S}'}
            write_json(self.holder, facts)
        except Timeout as error:
            raise UserError(f'{self.path} is in use {self._who()}; output=DIR writes elsewhere') from error
        except OSError as error:
            why = 'there is a file of that name' if self.path.is_file() else error.strerror
            raise UserError(f'output={self.path}: cannot write there: {why}; output=DIR writes elsewhere') from error

    def release(self) -> None:
        """Let other runs in. A folder that was made for nothing goes."""
        with suppress(OSError):
            self.holder.unlink(missing_ok=True)
            if self._made and [path.name for path in self.path.iterdir()] == ['.lock']:
                shutil.rmtree(self.path)
        self._lock.release()

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            holder = self._read_holder()
            if holder.get('host') != socket.gethostname() or psutil.pid_exists(holder['pid']):
                raise
            # The run was killed, and the workers that read its images are about to notice.
            self._lock.acquire(timeout=15)

    def _read_holder(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            return json.loads(self.holder.read_text())
        return {}

    def _who(self) -> str:
        holder = self._read_holder()
        return 'by process {pid} on {host} since {since}'.format(**holder) if holder else 'by another process'

    def leftovers(self) -> list[Path]:
        """What is lost where a run starts over."""
        return [path for path in (self.best, self.last, self.state, self.metrics) if path.exists()]

    def start(self, config: Config, environment: dict[str, Any], epochs: int, origin: Path | None) -> None:
        """Write the settings, and bring the folder to where the run starts. Its first checkpoint is already there.

        Args:
            epochs: done before, and kept.
            origin: the run folder that this run goes on from; None where it starts anew.
        """
        if origin is None:
            shutil.rmtree(self.events, ignore_errors=True)
            for path in (self.best, self.metrics):
                path.unlink(missing_ok=True)
        elif origin.resolve() != self.path.resolve():
            before = RunFolder(str(origin))
            for path in (before.best, before.metrics):
                if path.exists():
                    shutil.copy(path, self.path)
        for path in (self.summary, *self.pictures):
            path.unlink(missing_ok=True)
        # A run that was killed may have written of an epoch that its checkpoint does not know.
        write_atomically(self.metrics, b''.join(_to_line(line) for line in self.read_metrics()[:epochs]))
        # What makes the same run again, not what was done to an older one in this folder.
        write_atomically(self.config, to_yaml(dataclasses.replace(config, resume='auto')).encode())
        write_json(self.environment, environment)

    def append_metrics(self, line: dict[str, Any]) -> None:
        write_atomically(self.metrics, self.metrics.read_bytes() + _to_line(line))

    def read_metrics(self) -> list[dict[str, Any]]:
        if not self.metrics.exists():
            return []
        return [json.loads(line) for line in self.metrics.read_text().splitlines()]


def _to_line(content: dict[str, Any]) -> bytes:
    return (json.dumps(content) + '\n').encode()


def rows_of_run(summary: dict[str, Any]) -> dict[str, str]:
    """What every task's table at the end of a run shows of its summary."""
    rows = {
        'held-out images': f'{summary["images"]:,}',
        'best epoch': f'{summary["best_epoch"]} of {summary["epochs"]}',
        'parameters': f'{summary["parameters"]:,}',
        'training speed': f'{summary["images_per_second"]:,.0f} images/s',
        'time': f'{summary["seconds"]:.0f} s',
        'peak memory': f'{summary["peak_memory_bytes"] / 2**20:,.0f} MiB',
    }
    if summary['bad_images']:
        rows['unreadable images'] = str(len(summary['bad_images']))
    return rows


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=2) + '\n').encode())


def environment(device: str, processes: int) -> dict[str, Any]:
    """Where a run happened: versions, source, command line, device."""
    return {
        'command': command_line(processes),
        'attnzoo': attnzoo.__version__,
        'git': _git_revision(),
        'python': platform.python_version(),
        'platform': platform.platform(),
        'device': torch.cuda.get_device_name() if device == 'cuda' else f'{device}, {torch.get_num_threads()} threads',
        'processes': processes,
        'packages': {name: version for name in PACKAGES if (version := _version(name))},
    }


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
