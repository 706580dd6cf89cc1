"""Images for training and scoring: what `data.*` names, read, augmented and put in batches.

Every random choice is drawn from a seed that says where in the run it is made: the order of an epoch from (seed,
epoch), the augmentation of a sample from (seed, epoch, position in the epoch). So any part of a run can be done again,
by any number of workers, without the parts before it.
"""

import os
import random
import signal
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import ImageDataset, create_dataset, create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from .config import AugmentConfig, DataConfig
from .errors import UserError, first_line

Transform = Callable[[Image.Image], Tensor]
Sample = tuple[Tensor | None, int, str]  # image, label, and what is wrong with it where it could not be read
Batch = tuple[Tensor, Tensor, list[str]]  # images, labels, and what was wrong with those that are not among them

# The names that timm, too, takes for the folders of the two splits.
SPLIT_FOLDERS = {
    'train': ('train', 'training'),
    'validation': ('validation', 'val', 'valid', 'eval', 'evaluation'),
}


def seed_everything(*numbers: int) -> None:
    """Seed Python, NumPy and PyTorch with a hash of these numbers."""
    words = np.random.SeedSequence(numbers).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))


class Digits(Dataset):
    """scikit-learn's 1,797 handwritten digits, 8 x 8 pixels of 17 grey levels; a fifth of each class is held out.

    The split is the same for every seed of a run.
    """

    classes = tuple('0123456789')

    def __init__(self, split: str):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        pixels, labels = load_digits(return_X_y=True)
        indices = np.arange(len(labels))
        parts = train_test_split(indices, test_size=0.2, stratify=labels, random_state=0)
        self.indices = np.sort(parts[0 if split in SPLIT_FOLDERS['train'] else 1])
        self.pixels = (pixels * 255 / 16).round().astype(np.uint8).reshape(-1, 8, 8)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        index = self.indices[index]
        return Image.fromarray(self.pixels[index]).convert('RGB'), int(self.labels[index])


def open_dataset(config: DataConfig, split: str, seed: int = 0, classes: list[str] | None = None) -> Any:
    """The undecorated dataset of one split.

    Args:
        split: `config.train_split` or `config.val_split`.
        seed: order of a stream (wds/ and the like), which is opened once an epoch; others are ordered by the loader.
        classes: class names by label, where a folder must not number its own.

    Raises:
        UserError: nothing there, or a package that the format needs is not installed.
    """
    training = split == config.train_split
    kind = config.format if config.format != 'auto' else 'folder' if config.root else 'digits'
    if kind == 'digits':
        return Digits('train' if training else 'validation')
    options: dict[str, Any] = {'input_key': config.input_key, 'target_key': config.target_key}
    root, name = config.root, kind
    if kind == 'folder':
        root, name = str(_split_folder(config, split)), ''
        options = {'class_map': {label: index for index, label in enumerate(classes)} if classes else None}
    elif kind.startswith('torch/'):
        options = {'download': True}
    try:
        return create_dataset(
            name,
            root=root or None,
            split=split,
            search_split=kind != 'folder',
            is_training=training,
            batch_size=config.batch_size if training else 1,
            seed=seed,
            **options,
        )
    except ImportError as error:
        raise UserError(f'data.format={kind} needs the package {error.name!r}: pip install {error.name}') from error
    except Exception as error:
        # From readers of six libraries, each with its own exceptions.
        where = f'data.format={kind} data.root={config.root!r} ({split})'
        raise UserError(f'{where}: {first_line(error)}') from error


def _split_folder(config: DataConfig, split: str) -> Path:
    root = Path(config.root)
    if not config.root:
        raise UserError(
            'data.root is empty; data.format=folder needs data.root=PATH, with folders train/ and val/ in it'
        )
    if not root.is_dir():
        raise UserError(f'data.root={config.root}: no such folder')
    names = next((names for names in SPLIT_FOLDERS.values() if split in names), (split,))
    found = next((root / name for name in (split, *names) if (root / name).is_dir()), None)
    if found is None:
        inside = ', '.join(sorted(item.name for item in root.iterdir())[:5]) or 'nothing'
        raise UserError(f'data.root={config.root}: no folder {" or ".join(names[:3])} in it, but {inside}')
    return found


def class_names(dataset: Any) -> list[str]:
    """The class names by label, or nothing where the dataset has none."""
    numbers = getattr(getattr(dataset, 'reader', None), 'class_to_idx', None)
    if numbers:
        return sorted(numbers, key=numbers.__getitem__)
    return list(getattr(dataset, 'classes', ()))


def train_transform(augment: AugmentConfig, data: dict[str, Any]) -> Transform:
    """The random transform of one training image; `data` is the part of a ModelSpec of that name."""
    if augment.backend == 'none':
        return eval_transform(data)
    if augment.backend == 'albumentations':
        return _albumentations(augment, data)
    if augment.rotate:
        raise UserError('data.augment.rotate needs data.augment.backend=albumentations')
    return create_transform(
        data['input_size'],
        is_training=True,
        scale=(augment.scale[0], augment.scale[1]),
        ratio=(augment.ratio[0], augment.ratio[1]),
        hflip=augment.hflip,
        vflip=augment.vflip,
        color_jitter=augment.color_jitter,
        auto_augment=augment.auto_augment,
        re_prob=augment.erase,
        re_mode='pixel',
        interpolation=data['interpolation'],
        mean=data['mean'],
        std=data['std'],
    )


def eval_transform(data: dict[str, Any]) -> Transform:
    return create_transform(**data)


def _albumentations(augment: AugmentConfig, data: dict[str, Any]) -> Transform:
    os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')  # importing it asks the network for its newest version
    import albumentations
    import cv2

    if augment.auto_augment:
        raise UserError('data.augment.auto_augment needs data.augment.backend=timm')
    cv2.setNumThreads(0)  # its threads do not survive the fork of a worker
    interpolation = {'nearest': cv2.INTER_NEAREST, 'bilinear': cv2.INTER_LINEAR, 'bicubic': cv2.INTER_CUBIC}
    jitter = augment.color_jitter
    pipeline = albumentations.Compose(
        [
            albumentations.RandomResizedCrop(
                size=data['input_size'][1:],
                scale=tuple(augment.scale),
                ratio=tuple(augment.ratio),
                interpolation=interpolation.get(data['interpolation'], cv2.INTER_CUBIC),
            ),
            albumentations.Rotate(limit=augment.rotate, p=float(augment.rotate > 0)),
            albumentations.HorizontalFlip(p=augment.hflip),
            albumentations.VerticalFlip(p=augment.vflip),
            albumentations.ColorJitter(
                brightness=jitter, contrast=jitter, saturation=jitter, hue=0, p=float(jitter > 0)
            ),
            albumentations.Normalize(mean=data['mean'], std=data['std']),
            albumentations.Erasing(p=augment.erase),
            albumentations.ToTensorV2(),
        ]
    )

    def transform(image: Image.Image) -> Tensor:
        pipeline.set_random_seed(int(np.random.randint(2**31)))  # it has generators of its own
        return pipeline(image=np.asarray(image))['image']

    return transform


class _Samples(Dataset):
    """Samples by (epoch, position in the epoch, index in the dataset)."""

    def __init__(self, dataset: Any, transform: Transform, seed: int | None):
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __getitem__(self, key: tuple[int, int, int]) -> Sample:
        epoch, position, index = key
        try:
            image, label = self._read(index)
        except Exception as error:  # of a dozen decoders: OSError, SyntaxError, struct.error, zlib.error ...
            return None, 0, f'{self._name(index)}: {first_line(error)}'
        if self.seed is not None:
            seed_everything(self.seed, epoch, position)
        return self.transform(image), label, ''

    def _read(self, index: int) -> tuple[Image.Image, int]:
        if not isinstance(self.dataset, ImageDataset):
            image, label = self.dataset[index]
            return image.convert('RGB'), label
        # Past ImageDataset's own reading, which puts the next image in the place of one that cannot be read.
        stream, label, *_ = self.dataset.reader[index]
        with stream, Image.open(stream) as image:
            return image.convert('RGB'), label

    def _name(self, index: int) -> str:
        return self.dataset.filename(index) if isinstance(self.dataset, ImageDataset) else f'sample {index}'


class _Stream(IterableDataset):
    """Samples of a dataset that can only be read in its own order."""

    def __init__(self, dataset: IterableDataset, transform: Transform, *seeds: int):
        self.dataset, self.transform, self.seeds = dataset, transform, seeds

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        for position, (image, label) in enumerate(self.dataset):
            seed_everything(*self.seeds, worker.id if worker else 0, position)
            yield self.transform(image), label, ''


class _EpochOrder(Sampler[tuple[int, int, int]]):
    """The keys of one process in one epoch: `batches` whole batches, the first `start` of them left out."""

    def __init__(self, size: int, batches: int, batch_size: int, repeats: int, seed: int, rank: int, processes: int):
        self.size, self.batches, self.batch_size, self.repeats = size, batches, batch_size, repeats
        self.seed, self.rank, self.processes = seed, rank, processes
        self.epoch = self.start = 0

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size).repeat(self.repeats)
        # Fewer images than one batch of all processes: the order starts again.
        order = np.resize(order[: self.size], self.batches * self.batch_size * self.processes)
        for position in range(self.start * self.batch_size * self.processes + self.rank, len(order), self.processes):
            yield self.epoch, position, int(order[position])

    def __len__(self) -> int:
        return (self.batches - self.start) * self.batch_size


class TrainLoader:
    """Shuffled, augmented batches of one process.

    Args:
        transform: of one image.
        accumulate: an epoch has a multiple of so many batches, all of them full.
        rank, processes: this process among those that share an epoch.

    Attributes:
        batches: batches of an epoch.
    """

    def __init__(
        self,
        config: DataConfig,
        dataset: Any,
        transform: Transform,
        seed: int,
        accumulate: int,
        rank: int,
        processes: int,
    ):
        self.config, self.transform, self.seed, self.rank = config, transform, seed, rank
        self.stream = isinstance(dataset, IterableDataset)
        if self.stream:
            dataset.set_loader_cfg(num_workers=_workers(config))
        size, share = len(dataset), 1 if self.stream else processes  # a stream's length is already one process's
        self.batches = max(1, size // (config.batch_size * share * accumulate)) * accumulate
        if not self.stream:
            repeats = config.augment.repeats
            self.order = _EpochOrder(size, self.batches, config.batch_size, repeats, seed, rank, processes)
            self.loader = self._loader(_Samples(dataset, transform, seed), sampler=self.order)

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on."""
        if not self.stream:
            self.order.epoch, self.order.start = epoch, start
            return iter(self.loader)
        # Opened anew each epoch, because its shuffling carries state from one epoch to the next.
        seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0] >> 1)
        dataset = open_dataset(self.config, self.config.train_split, seed)
        dataset.set_loader_cfg(num_workers=_workers(self.config))
        samples = _Stream(dataset, self.transform, self.seed, epoch, self.rank)
        # Its workers' own shuffling is seeded by the loader's generator.
        loader = self._loader(samples, generator=torch.Generator().manual_seed(seed), drop_last=True)
        return islice(loader, start, self.batches)

    def _loader(self, samples: Dataset, **options: Any) -> DataLoader:
        persistent = _workers(self.config) > 0 and not self.stream
        return _data_loader(self.config, samples, _collate_full, persistent_workers=persistent, **options)


def eval_loader(config: DataConfig, dataset: Any, transform: Transform, rank: int, processes: int) -> DataLoader:
    """Every image once, in order; this process's share of them."""
    if isinstance(dataset, IterableDataset):
        return _data_loader(config, _Stream(dataset, transform, 0), _collate)
    keys = [(0, index, index) for index in range(rank, len(dataset), processes)]
    return _data_loader(config, _Samples(dataset, transform, None), _collate, sampler=keys)


def _data_loader(config: DataConfig, samples: Dataset, collate: Callable[..., Batch], **options: Any) -> DataLoader:
    return DataLoader(
        samples,
        batch_size=config.batch_size,
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


def _collate(samples: list[Sample]) -> Batch:
    good = [(image, label) for image, label, _ in samples if image is not None]
    bad = [problem for image, _, problem in samples if image is None]
    images = torch.stack([image for image, _ in good]) if good else torch.empty(0)
    return images, torch.tensor([label for _, label in good], dtype=torch.long), bad


def _collate_full(samples: list[Sample]) -> Batch:
    """As `_collate`, but other images of the batch stand in for those that could not be read."""
    images, labels, bad = _collate(samples)
    if bad and len(images):
        chosen = torch.arange(len(samples)) % len(images)
        images, labels = images[chosen], labels[chosen]
    return images, labels, bad


class BadImages:
    """The images that could not be read: each named once, and no more of them than `limit`."""

    def __init__(self, limit: int, known: list[str], tell: Callable[[str], None]):
        self.limit, self.names, self.tell = limit, set(known), tell

    def add(self, problems: list[str]) -> None:
        for problem in problems:
            if problem in self.names:
                continue
            self.names.add(problem)
            self.tell(f'cannot read image {problem} ({len(self.names)} so far)')
            if len(self.names) > self.limit:
                raise UserError(
                    f'{len(self.names)} images cannot be read, more than data.max_bad_images={self.limit}; '
                    f'the last is {problem}'
                )
