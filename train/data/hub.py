"""Datasets of Hugging Face: of the hub by name, or in a local folder."""

import io
from collections.abc import Iterator, Mapping
from typing import Any
from zlib import crc32

import datasets
import fsspec
from timm.data.readers.targets import get_field, has_field

from ..errors import UserError
from .images import UnreadableImage
from .samples import Raw, Samples, Source, Stream, pick_split

SHUFFLED_TOGETHER = 4096  # samples of a stream that lie in memory, undecoded


class HubSamples(Samples):
    """A split that is downloaded as a whole. Images may be files, bytes in a table, or links to either."""

    def __init__(self, name: str, split: str, cache: str | None, image_key: str | None, label_key: str | None):
        splits = datasets.load_dataset(name, cache_dir=cache)
        self.remarks = []
        known, _, part = split.partition('[')  # train[:10%]
        self.split = pick_split(known, list(splits), f'data.format=hfds/{name}', self.remarks)
        if part:
            self.split = f'{self.split}[{part}'
            self.rows = datasets.load_dataset(name, cache_dir=cache, split=self.split)
        else:
            self.rows = splits[self.split]
        self.columns = _Columns(self.rows.features, image_key, label_key)
        self.rows = self.rows.cast_column(self.columns.image, datasets.Image(decode=False))
        self.classes = self.columns.classes

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, item: int) -> tuple[Source, Any]:
        row = self.rows[item]
        return _open(row[self.columns.image]), get_field(row, self.columns.label)

    def name(self, item: int) -> str:
        return f'{self.split} row {item}'


class HubStream(Stream):
    """A split that is read while it comes.

    Args:
        split: its name, and `|` and the number of its samples where the dataset does not say it.
    """

    def __init__(self, name: str, split: str, cache: str | None, image_key: str | None, label_key: str | None):
        splits = datasets.load_dataset(name, cache_dir=cache, streaming=True)
        wanted, _, count = split.partition('|')
        self.remarks = []
        self.split = pick_split(wanted, list(splits), f'data.format=hfids/{name}', self.remarks)
        rows = splits[self.split]
        self.columns = _Columns(rows.features or {}, image_key, label_key)
        self.rows = rows.cast_column(self.columns.image, datasets.Image(decode=False))
        self.classes = self.columns.classes
        info = (rows.info.splits or {}).get(self.split)
        self.announced = int(count or (info.num_examples if info else 0) or 0)

    def __len__(self) -> int:
        return self.announced

    def walk(self, seed: int | None) -> Iterator[Raw]:
        rows = self.rows if seed is None else self.rows.shuffle(seed=seed, buffer_size=SHUFFLED_TOGETHER)
        for row in rows:
            yield Raw('', row[self.columns.image], get_field(row, self.columns.label))

    def name(self, item: Raw) -> str:
        """By its file, or its content: in a stream that is shuffled nobody counts the rows."""
        image = item.image or {'path': None, 'bytes': None}
        if image['path']:
            return f'{self.split}: {image["path"]}'
        return f'{self.split}: row with the image of CRC-32 {crc32(image["bytes"] or b""):08x} and label {item.label}'

    def read(self, item: Raw) -> tuple[Source, Any]:
        return _open(item.image), item.label


class _Columns:
    """Which column is the image and which the label: those that are asked for, or the only ones that can be."""

    def __init__(self, features: Mapping[str, Any], image: str | None, label: str | None):
        there = ', '.join(features)
        images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
        labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        self.image = image or ('image' if 'image' in features or len(images) != 1 else images[0])
        self.label = label or ('label' if 'label' in features or len(labels) != 1 else labels[0])
        for setting, name in (('input_key', self.image), ('target_key', self.label)):
            if not has_field(features, name):
                raise UserError(f'data.{setting}={name}: the dataset has no such column, but {there}')
        if getattr(get_field(features, self.label), 'dtype', None) == 'string':
            raise UserError(f'data.target_key={self.label} holds text, expected numbers of classes')
        self.classes = list(getattr(get_field(features, self.label), 'names', None) or ())


def _open(image: Mapping[str, Any] | None) -> Source:
    if not image or not (image['bytes'] or image['path']):
        raise UnreadableImage('the row has no image')
    return io.BytesIO(image['bytes']) if image['bytes'] else fsspec.open(image['path'], 'rb').open()
