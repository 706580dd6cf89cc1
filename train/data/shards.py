"""Tar shards as webdataset keeps them: members of one name and several endings are one sample.

Shards on a disk are indexed once, and are samples in any order from then on. Others (https:, pipe:, compressed) are a
stream.
"""

import io
import json
import logging
import os
import random
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import webdataset
from timm.data import create_dataset
from timm.data.readers.targets import get_field
from webdataset.tariterators import base_plus_ext

from ..errors import UserError, one_line
from .images import UnreadableImage
from .samples import Raw, Samples, Source, Stream

IMAGES = 'jpg;jpeg;png;webp'  # endings, where data.input_key does not say others
SHUFFLED_TOGETHER = 8192  # samples: of a disk, so many places a sample moves; of a stream, so many lie in memory


def open_shards(root: str, split: str, image_key: str | None, label_key: str | None) -> Samples:
    """The samples of a split: a name in the root's _info.json, or shards, `train-{0000..0146}.tar|1281167`.

    The number behind the bar is how many samples there are. A stream cannot do without it in training.
    """
    logging.getLogger('timm.data.readers.reader_wds').setLevel(logging.ERROR)  # that there is no _info.json is no news
    try:
        reader = create_dataset('wds/', root=root, split=split, target_key=label_key).reader
    except RuntimeError as error:
        info = os.path.join(root, '_info.json')
        raise UserError(
            f'data.format=wds/: no split {split} in {info}; without that file name the shards themselves, such as '
            'train-{0000..0146}.tar|1281167'
        ) from error
    info = reader.split_info
    keys = _Keys((image_key or IMAGES).split(';'), label_key or info.alt_label)
    places = {name: name if _is_link(name) else os.path.join(root, name) for name in info.filenames}
    if all(place.endswith('.tar') and not _is_link(place) for place in places.values()):
        return Shards(places, keys)
    return ShardStream(places, keys, reader.num_samples)


def _is_link(place: str) -> bool:
    return re.match(r'[a-z][a-z0-9+.-]+:', place) is not None  # but not the C: of Windows


@dataclass(frozen=True)
class _Keys:
    """Where a sample keeps what is wanted."""

    images: list[str]  # endings, the best first
    label: str  # a field of its .json; empty: the number in its .cls

    def find(self, endings: Mapping[str, Any]) -> tuple[str | None, str | None]:
        """The endings of a sample's image and of its label."""
        image = next((ending for ending in self.images if ending in endings), None)
        label = 'json' if self.label else 'cls'
        return image, label if label in endings else None

    def missing(self, endings: Mapping[str, Any]) -> str:
        image, label = self.find(endings)
        wanted = [] if image else [f'image ({", ".join(self.images)})']
        wanted += [] if label else [f'label ({"json" if self.label else "cls"})']
        return f'no {" and no ".join(wanted)} beside its {", ".join(sorted(endings))}' if wanted else ''

    def read_label(self, content: bytes) -> int | None:
        """The class number; None where the sample is to be left out, which a negative number in the .json says."""
        if not self.label:
            return int(content)
        label = int(get_field(json.loads(content), self.label))
        return label if label >= 0 else None


@dataclass
class _Index:
    """Where in its file the image of each sample of one shard lies."""

    keys: list[bytes] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    problems: dict[int, str] = field(default_factory=dict)  # by sample, what makes it unreadable

    def add(self, key: str, members: Mapping[str, tarfile.TarInfo], keys: _Keys, tar: tarfile.TarFile) -> None:
        problem, label = keys.missing(members), 0
        image, label_ending = keys.find(members)
        if label_ending:
            try:
                found = keys.read_label(tar.extractfile(members[label_ending]).read())  # type: ignore[union-attr]
            except (ValueError, KeyError, TypeError) as error:
                problem = f'its label cannot be read: {one_line(error)}'
            else:
                if found is None:
                    return
                label = found
        if problem:
            self.problems[len(self.keys)] = problem
        self.keys.append(key.encode())
        self.labels.append(label)
        self.offsets.append(members[image].offset_data if image else 0)
        self.sizes.append(members[image].size if image else 0)


class Shards(Samples):
    """Shards on a disk. Their headers and labels are read beforehand, which takes a minute for half a million samples.

    They are shuffled shard by shard with their neighbours, so that reading is mostly in the order of the disk.
    """

    def __init__(self, places: Mapping[str, str], keys: _Keys):
        self.classes, self.remarks = [], []
        self.names, self.places = list(places), list(places.values())
        found = [_index(place, keys) for place in self.places]
        self.starts = np.cumsum([0, *(len(index.keys) for index in found)])
        self.keys = np.array([key for index in found for key in index.keys], dtype=bytes)
        self.labels, self.offsets, self.sizes = (
            np.array([value for index in found for value in getattr(index, name)], dtype=np.int64)
            for name in ('labels', 'offsets', 'sizes')
        )
        self.problems = {
            int(start) + item: problem
            for start, index in zip(self.starts, found, strict=False)
            for item, problem in index.problems.items()
        }
        if not len(self):
            raise UserError(f'no samples in {self.places[0]}{" and others" if len(places) > 1 else ""}')

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, item: int) -> tuple[Source, int]:
        if item in self.problems:
            raise UnreadableImage(self.problems[item])
        with open(self.places[self._shard(item)], 'rb') as file:
            file.seek(self.offsets[item])
            return io.BytesIO(file.read(self.sizes[item])), int(self.labels[item])

    def name(self, item: int) -> str:
        return f'{self.names[self._shard(item)]}/{self.keys[item].decode()}'

    def order(self, rng: np.random.Generator) -> np.ndarray:
        if len(self) <= SHUFFLED_TOGETHER:
            return super().order(rng)
        shards = rng.permutation(len(self.places))
        in_shards = np.concatenate([np.arange(self.starts[shard], self.starts[shard + 1]) for shard in shards])
        return in_shards[np.argsort(np.arange(len(self)) + rng.uniform(0, SHUFFLED_TOGETHER, len(self)))]

    def _shard(self, item: int) -> int:
        return int(np.searchsorted(self.starts, item, side='right')) - 1


def _index(place: str, keys: _Keys) -> _Index:
    index = _Index()
    try:
        with tarfile.open(place, 'r:') as tar:
            for key, members in _samples(tar):
                index.add(key, members, keys, tar)
    except OSError as error:
        raise UserError(f'shard {place}: {error.strerror or one_line(error)}') from error
    except tarfile.TarError as error:
        raise UserError(f'shard {place} is damaged or was cut off in a copy: {one_line(error)}') from error
    return index


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Key and members by ending of each sample, in webdataset's way: neighbours of one name, endings in lower case."""
    current = ''
    members: dict[str, tarfile.TarInfo] = {}
    for member in tar:
        tar.members.clear()  # type: ignore[attr-defined]  # it keeps every member
        key, ending = base_plus_ext(member.name)
        if key is None or not member.isfile() or re.match(r'__[^/]*__($|/)', member.name):
            continue
        if key != current and members:
            yield current, members
            members = {}
        current = key
        members[ending.lower()] = member
    if members:
        yield current, members


class ShardStream(Stream):
    """Shards that can only be read from their first byte to their last."""

    def __init__(self, places: Mapping[str, str], keys: _Keys, announced: int):
        self.classes, self.remarks = [], []
        self.places, self.keys, self.announced = list(places.values()), keys, announced

    def __len__(self) -> int:
        return self.announced

    def walk(self, seed: int | None) -> Iterator[Raw]:
        places = list(self.places)
        if seed is not None:
            random.Random(seed).shuffle(places)
        stages = [webdataset.SimpleShardList(places), webdataset.tarfile_to_samples()]
        if seed is not None:
            shuffled = {'bufsize': SHUFFLED_TOGETHER, 'initial': SHUFFLED_TOGETHER // 4, 'rng': random.Random(seed)}
            stages.append(webdataset.shuffle(**shuffled))
        try:
            for sample in webdataset.DataPipeline(*stages):
                yield from self._raw(sample)
        except (OSError, ValueError, tarfile.TarError) as error:
            raise UserError(f'shards {self.places[0]} ...: {one_line(error)}') from error

    def read(self, item: Raw) -> tuple[Source, int]:
        if item.problem:
            raise UnreadableImage(item.problem)
        return io.BytesIO(item.image), item.label

    def _raw(self, sample: dict[str, Any]) -> Iterator[Raw]:
        name = f'{os.path.basename(sample["__url__"])}/{sample["__key__"]}'
        members = {ending: content for ending, content in sample.items() if not ending.startswith('__')}
        image, label = self.keys.find(members)
        problem, number = self.keys.missing(members), None
        if label:
            try:
                number = self.keys.read_label(members[label])
            except (ValueError, KeyError, TypeError) as error:
                problem = f'its label cannot be read: {one_line(error)}'
            else:
                if number is None:
                    return
        yield Raw(name, members[image] if image else None, number, problem)
