"""Images for training and scoring: what `data.*` names, read and put in batches. What a batch is, its task says.

Every random choice is drawn from a seed that says where in the run it is made: the order of an epoch from (seed,
epoch), the augmentation of a sample from (seed, epoch, position in the epoch). So any part of a run can be done again,
by any number of workers, without the parts before it.
"""

import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from timm.data import create_dataset
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..config import DataConfig
from ..errors import UserError, one_line
from .images import EXTENSIONS, UnreadableImage, decode
from .samples import Digits, Folder, Samples, Source, Stream, Torchvision, pick_split
from .transforms import Transform


class Problem(NamedTuple):
    """A sample that cannot be read."""

    name: str
    reason: str


Key = tuple[int, int, Any]  # epoch, position in it, item of the samples
Batch = tuple[Any, Any, list[Problem]]  # images, their targets, and what is not among them


class Reader(Protocol):
    """What a task makes of a sample, and of several of them. It can be pickled."""

    def __call__(self, source: Source, target: Any) -> tuple[Any, Any]:
        """The image and its target for the model. Whatever is raised is a reason why the sample cannot be read."""

    def collate(self, samples: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
        """The images and the targets of a batch, which may be none."""


class Labelled:
    """A `Reader` of images with one class each: tensors of images and labels.

    Args:
        num_classes: labels are below it.
    """

    def __init__(self, transform: Transform, num_classes: int):
        self.transform, self.num_classes = transform, num_classes

    def __call__(self, source: Source, target: Any) -> tuple[Tensor, int]:
        if not isinstance(target, (int, np.integer)) or not 0 <= target < self.num_classes:
            raise UnreadableImage(f'its label is {target!r}, expected a number from 0 to {self.num_classes - 1}')
        return self.transform(decode(source, self.transform.channels)), int(target)

    def collate(self, samples: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        images = torch.stack([image for image, _ in samples]) if samples else torch.empty(0)
        return images, torch.tensor([label for _, label in samples], dtype=torch.long)


def seed_everything(*numbers: int) -> None:
    """Seed Python, NumPy and PyTorch with a hash of these numbers."""
    words = np.random.SeedSequence(numbers).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))


def data_format(config: DataConfig) -> str:
    """`data.format`, with what auto stands for."""
    return config.format if config.format != 'auto' else 'folder' if config.root else 'digits'


def open_dataset(config: DataConfig, split: str, classes: list[str] | None = None) -> Samples:
    """The samples of one split, as they are stored.

    Args:
        split: `config.train_split` or `config.val_split`.
        classes: class names by number, where the split must not number its own.

    Raises:
        UserError: nothing there, classes that are not among those, or a package that the format needs is missing.
    """
    where = f'data.format={data_format(config)} data.root={config.root!r} ({split})'
    try:
        samples = _open(config, split)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f'{where} needs the package {error.name!r}: pip install {error.name}') from error
    except Exception as error:  # of four libraries, each with its own exceptions
        raise UserError(f'{where}: {one_line(error)}') from error
    if classes:
        samples.number_as(classes, where)
    return samples


def _open(config: DataConfig, split: str) -> Samples:
    kind, _, name = data_format(config).partition('/')
    keys = config.input_key, config.target_key
    if kind == 'digits':
        return Digits('train' if split == config.train_split else 'validation')
    if kind == 'folder':
        return _open_folder(config, split)
    if kind == 'torch' and name:
        dataset = create_dataset(f'torch/{name}', root=config.root or None, split=split, download=True)
        return Torchvision(dataset, split)
    if kind == 'wds':
        from .shards import open_shards

        return open_shards(config.root, split, *keys)
    if kind in ('hfds', 'hfids') and name:
        from .hub import HubSamples, HubStream

        return (HubSamples if kind == 'hfds' else HubStream)(name, split, config.root or None, *keys)
    raise UserError(
        f'data.format={config.format}: expected auto, digits, folder, torch/NAME, hfds/NAME (Hugging Face), '
        'hfids/NAME (the same as a stream) or wds/ (tar shards of webdataset)'
    )


def _open_folder(config: DataConfig, split: str) -> Folder:
    root = Path(config.root)
    if not config.root:
        raise UserError(
            'data.root is empty; data.format=folder needs data.root=PATH, with folders train/ and val/ in it'
        )
    if not root.is_dir():
        raise UserError(f'data.root={config.root}: no such folder')
    inside = [path.name for path in root.iterdir() if path.is_dir()]
    remarks: list[str] = []
    name = split if (root / split).is_dir() else pick_split(split, inside, f'data.root={config.root}', remarks)
    endings = [f'.{ending.lower().lstrip(".")}' for ending in (config.input_key or '').split(';') if ending]
    folder = Folder(root, name, endings or EXTENSIONS)
    folder.remarks += remarks
    return folder


class _Readable(Dataset):
    """Images and targets by (epoch, position in the epoch, item of the samples)."""

    def __init__(self, samples: Samples, reader: Reader, seed: int | None):
        self.samples, self.reader, self.seed = samples, reader, seed

    def __getitem__(self, key: Key) -> tuple[Any, Any] | Problem:
        epoch, position, item = key
        try:
            source, target = self.samples[item]
            if self.seed is not None:
                seed_everything(self.seed, epoch, position)
            return self.reader(source, target)
        except Exception as error:  # of files, tables, decoders, and transforms of images of one pixel
            return Problem(self.samples.name(item), one_line(error))


class _EpochOrder(Sampler[Key]):
    """The keys of one process in one epoch: `batches` whole batches, the first `start` of them left out."""

    def __init__(self, samples: Samples, batches: int, config: DataConfig, seed: int, rank: int, processes: int):
        self.samples, self.batches, self.repeats = samples, batches, config.augment.repeats
        self.batch_size, self.seed, self.rank, self.processes = config.batch_size, seed, rank, processes
        self.epoch = self.start = 0

    def __iter__(self) -> Iterator[Key]:
        order = self.samples.order(np.random.default_rng([self.seed, self.epoch])).repeat(self.repeats)
        # Fewer images than one batch of all processes: the order starts again.
        order = np.resize(order[: len(self.samples)], self.batches * self.batch_size * self.processes)
        for position in range(self.start * self.batch_size * self.processes + self.rank, len(order), self.processes):
            yield self.epoch, position, int(order[position])

    def __len__(self) -> int:
        return (self.batches - self.start) * self.batch_size


class _StreamOrder(Sampler[Key]):
    """As `_EpochOrder`, of a stream: whole steps of `accumulate` batches, up to `batches` or to its end."""

    def __init__(
        self, stream: Stream, batches: int, accumulate: int, config: DataConfig, seed: int, rank: int, processes: int
    ):
        self.stream, self.batches, self.accumulate = stream, batches, accumulate
        self.batch_size, self.seed, self.rank, self.processes = config.batch_size, seed, rank, processes
        self.epoch = self.start = 0

    def __iter__(self) -> Iterator[Key]:
        batch = self.batch_size * self.processes  # of all processes together
        seed = int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0] >> 1)
        step: list[Key] = []
        seen = 0
        for position, raw in enumerate(self.stream.walk(seed)):
            if position % self.processes == self.rank and position >= self.start * batch:
                step.append((self.epoch, position, raw))
            seen = position + 1
            if seen % (batch * self.accumulate) == 0:
                yield from step
                step = []
            if seen == self.batches * batch:
                return
        if seen < batch * self.accumulate:
            raise UserError(
                f'the stream ends after {seen} samples, too few for one step of {batch * self.accumulate} '
                '(data.batch_size x train.grad_accum x processes)'
            )


class _EvalOrder(Sampler[Key]):
    """Every sample once, in order: those of one process."""

    def __init__(self, samples: Samples, rank: int, processes: int):
        self.samples, self.rank, self.processes = samples, rank, processes

    def __iter__(self) -> Iterator[Key]:
        items = self.samples.walk(None) if isinstance(self.samples, Stream) else range(len(self.samples))
        for position, item in enumerate(items):
            if position % self.processes == self.rank:
                yield 0, position, item

    def __len__(self) -> int:
        return len(range(self.rank, len(self.samples), self.processes))


class TrainLoader:
    """Shuffled batches of one process, all of them full.

    Args:
        accumulate: an epoch has a multiple of so many batches.
        rank, processes: this process among those that share an epoch.

    Attributes:
        batches: of an epoch. A stream that ends before has fewer, and as many in all processes.
    """

    def __init__(
        self,
        config: DataConfig,
        samples: Samples,
        reader: Reader,
        seed: int,
        accumulate: int,
        rank: int,
        processes: int,
    ):
        if not len(samples):
            raise UserError(
                f'data.train_split={config.train_split}: this stream does not say how many samples it has; '
                f"'data.train_split={config.train_split}|NUMBER' does"
            )
        self.batches = max(1, len(samples) // (config.batch_size * processes * accumulate)) * accumulate
        self.order: _EpochOrder | _StreamOrder
        if isinstance(samples, Stream):
            self.order = _StreamOrder(samples, self.batches, accumulate, config, seed, rank, processes)
        else:
            self.order = _EpochOrder(samples, self.batches, config, seed, rank, processes)
        readable = _Readable(samples, reader, seed)
        persistent = _workers(config) > 0
        collate = _Collate(reader, full=True)
        self.loader = _data_loader(config, readable, collate, self.order, persistent_workers=persistent)

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on.

        Other images stand in for those that cannot be read: of the batch, or of the batch before.
        """
        self.order.epoch, self.order.start = epoch, start
        before = None
        for images, targets, problems in self.loader:
            if len(targets):
                before = images, targets
            elif before is None:
                reason = ': '.join(problems[0])
                raise UserError(f'not one image of a batch of {self.order.batch_size} can be read, such as {reason}')
            yield *before, problems


def eval_loader(config: DataConfig, samples: Samples, reader: Reader, rank: int, processes: int) -> DataLoader:
    """Every image once, in order; this process's share of them. Its length is unknown where they are a stream."""
    readable = _Readable(samples, reader, None)
    return _data_loader(config, readable, _Collate(reader, full=False), _EvalOrder(samples, rank, processes))


def _data_loader(
    config: DataConfig, readable: _Readable, collate: Callable[..., Batch], order: Sampler[Key], **options: Any
) -> DataLoader:
    return DataLoader(
        readable,
        batch_size=config.batch_size,
        sampler=order,
        num_workers=_workers(config),
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_parent,
        **options,
    )


def _workers(config: DataConfig) -> int:
    """As many as asked for, but no more than there are cores to run them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return min(config.workers, cores)


def _leave_signals_to_parent(_: int) -> None:
    # Ctrl-C reaches every process of the terminal. The parent finishes its step and ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Collate:
    """A batch of samples and of problems.

    Args:
        full: other images of the batch stand in for those that could not be read.
    """

    def __init__(self, reader: Reader, *, full: bool):
        self.reader, self.full = reader, full

    def __call__(self, samples: list[tuple[Any, Any] | Problem]) -> Batch:
        good = [sample for sample in samples if not isinstance(sample, Problem)]
        bad = [sample for sample in samples if isinstance(sample, Problem)]
        if self.full and good:
            good = [good[index % len(good)] for index in range(len(samples))]
        images, targets = self.reader.collate(good)
        return images, targets, bad


class BadImages:
    """The images that cannot be read, of all processes: each named once, and no more of them than `limit`.

    Attributes:
        names: of those that all processes know.
    """

    def __init__(self, limit: int, known: list[str], tell: Callable[[str], None]):
        self.limit, self.names, self.tell = limit, set(known), tell
        self._found: list[Problem] = []  # by this process since it last shared them

    def add(self, problems: list[Problem]) -> None:
        """Note what this process met. Nothing comes of it before `share`."""
        self._found += [problem for problem in problems if problem.name not in self.names]

    def share(self) -> None:
        """Name the new ones. Every process calls it at the same point, or it waits for the others.

        Raises:
            UserError, SystemExit: in the main process and in the others, where there are more than the limit.
        """
        main = PartialState().is_main_process
        reason = ''
        for problem in gather_object(self._found):
            if problem.name not in self.names:
                self.names.add(problem.name)
                reason = f'{problem.name}: {problem.reason}'
                if main:
                    self.tell(f'cannot read image {reason} ({len(self.names)} so far)')
        self._found = []
        if reason and len(self.names) > self.limit:
            error = UserError(
                f'{len(self.names)} images cannot be read, more than data.max_bad_images={self.limit}; '
                f'the last is {reason}'
            )
            raise error if main else SystemExit(1)
