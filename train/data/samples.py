"""What a split holds: samples that can be read in any order, or a stream of them; and splits that lie on a disk.

A sample is an image that is not decoded yet and the number of its class.
"""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image
from timm.utils.misc import natural_key

from ..errors import UserError, few
from .images import EXTENSIONS, UnreadableImage, is_hidden

Source = str | IO[bytes] | Image.Image  # of an image, see `decode`

# Names of the two splits, the likeliest first. Who asks for one of a line takes any of it.
SPLIT_NAMES = (
    ('train', 'training'),
    ('validation', 'val', 'valid', 'eval', 'evaluation', 'dev', 'test', 'testing'),
)


class Samples:
    """Samples in any order, by their number.

    Attributes:
        classes: names by class number; empty where nobody has named them.
        remarks: what a user should know about the split, one line each.
    """

    classes: list[str]
    remarks: list[str]
    _numbers: list[int] | None = None  # by class number of the files, where those of the training are others

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, item: Any) -> tuple[Source, Any]:
        """The image and its class number. Whatever is raised here is a reason why the sample cannot be read."""
        source, label = self.read(item)
        if self._numbers is None:
            return source, label
        if label not in range(len(self._numbers)):
            raise UnreadableImage(f'its label is {label!r}, expected a number from 0 to {len(self._numbers) - 1}')
        return source, self._numbers[label]

    def read(self, item: Any) -> tuple[Source, Any]:
        raise NotImplementedError

    def name(self, item: Any) -> str:
        """What a user finds the sample by."""
        raise NotImplementedError

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """The numbers of all samples, shuffled."""
        return rng.permutation(len(self))

    def number_as(self, classes: Sequence[str], where: str) -> None:
        """Number the classes as those of the training, by their names.

        Raises:
            UserError: some are not among them.
        """
        if not self.classes or self.classes == list(classes):
            return
        unknown = [name for name in self.classes if name not in classes]
        if unknown:
            raise UserError(
                f'{where} has classes that training does not know: {few(unknown)} (it knows {few(list(classes))})'
            )
        self._numbers = [classes.index(name) for name in self.classes]
        self.classes = list(classes)


class Raw(NamedTuple):
    """A sample of a stream."""

    name: str
    image: Any
    label: Any
    problem: str = ''  # why it cannot be read, where that is known


class Stream(Samples):
    """Samples that come in an order of their own. Its items are `Raw`; its length is what it announces, or 0.

    Every process walks the whole stream in the same order and passes on to its workers, which decode, the samples that
    are its own. So all of them see the same end, no process waits for another's batch, and neither processes nor
    workers nor shards have to divide. The cost: every process reads (but does not decode) what all of them train on.
    """

    def walk(self, seed: int | None) -> Iterator[Raw]:
        """All samples, shuffled with a seed or as they are stored."""
        raise NotImplementedError

    def name(self, item: Raw) -> str:
        return item.name


class Digits(Samples):
    """scikit-learn's 1,797 handwritten digits, 8 x 8 pixels of 17 grey levels; a fifth of each class is held out.

    The split is the same for every seed of a run.
    """

    def __init__(self, split: str):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        pixels, labels = load_digits(return_X_y=True)
        indices = np.arange(len(labels))
        parts = train_test_split(indices, test_size=0.2, stratify=labels, random_state=0)
        self.indices = np.sort(parts[0 if split in SPLIT_NAMES[0] else 1])
        self.pixels = (pixels * 255 / 16).round().astype(np.uint8).reshape(-1, 8, 8)
        self.labels = labels
        self.classes, self.remarks = list('0123456789'), []

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, item: int) -> tuple[Source, int]:
        index = self.indices[item]
        return Image.fromarray(self.pixels[index]), int(self.labels[index])

    def name(self, item: int) -> str:
        return f'digit {self.indices[item]}'


class Folder(Samples):
    """A folder of class folders. As timm has it, the folder that an image lies in names its class, however deep.

    Args:
        root: what the names of images are relative to.
        split: the folder of the split in it.
        extensions: of the files that are images.
    """

    def __init__(self, root: Path, split: str, extensions: Sequence[str] = EXTENSIONS):
        self.root, folder = root, root / split
        files: list[tuple[str, str]] = []  # path in the root, class
        stray: list[str] = []
        with_images = set()
        for place, inside, names in os.walk(folder, followlinks=True):
            inside[:] = [name for name in inside if not is_hidden(name)]
            images = [name for name in names if name.lower().endswith(tuple(extensions)) and not is_hidden(name)]
            path = os.path.relpath(place, folder)
            if path == '.':
                stray, directly = images, sorted(inside)
            elif images:
                with_images.add(path.split(os.sep)[0])
                label = unicodedata.normalize('NFC', os.path.basename(path))  # macOS writes an umlaut as two characters
                files += [(os.path.join(split, path, name), label) for name in images]
        if not files:
            found = f'; {len(stray)} lie beside them ({few(sorted(stray))})' if stray else ''
            endings = ', '.join(extensions)
            raise UserError(f'no image in class folders of {folder}, such as {folder}/cat/1.jpg{found} ({endings})')
        files.sort(key=lambda file: (natural_key(file[0]), file[0]))
        self.classes = sorted({label for _, label in files}, key=lambda label: (natural_key(label), label))
        number = {label: index for index, label in enumerate(self.classes)}
        self.files = [path for path, _ in files]
        self.labels = np.array([number[label] for _, label in files])
        self.remarks = []
        if stray:
            self.remarks.append(f'left out, because they lie in no class folder of {folder}: {few(sorted(stray))}')
        if empty := [name for name in directly if name not in with_images]:
            self.remarks.append(f'no classes, because no image is in these folders of {folder}: {few(empty)}')

    def __len__(self) -> int:
        return len(self.files)

    def read(self, item: int) -> tuple[Source, int]:
        return os.path.join(self.root, self.files[item]), int(self.labels[item])

    def name(self, item: int) -> str:
        return self.files[item]


class Torchvision(Samples):
    """A dataset of torchvision."""

    def __init__(self, dataset: Any, split: str):
        self.dataset, self.split = dataset, split
        names = getattr(dataset, 'classes', ())
        self.classes = [name if isinstance(name, str) else ', '.join(name) for name in names]
        self.remarks = []
        if hasattr(dataset, 'loader'):
            dataset.loader = str  # leaves files to us; its own decoder knows neither 16 bits nor EXIF

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, item: int) -> tuple[Source, Any]:
        return self.dataset[item]

    def name(self, item: int) -> str:
        files = getattr(self.dataset, 'samples', None)  # of a dataset that lies in folders
        return str(files[item][0]) if files else f'{self.split} image {item}'


def pick_split(wanted: str, there: Sequence[str], where: str, remarks: list[str]) -> str:
    """The split of that name, or of another of its usual names.

    Args:
        there: names of splits.
        remarks: gets a line where a split for tests stands in.

    Raises:
        UserError: there is none.
    """
    names = next((names for names in SPLIT_NAMES if wanted in names), ())
    found = next((name for name in (wanted, *names) if name in there), None)
    if found is None:
        usual = ' or '.join([wanted, *(name for name in names if name != wanted)][:3])
        setting = 'train_split' if wanted in SPLIT_NAMES[0] else 'val_split'
        raise UserError(
            f'{where}: no {usual} in it, but {few(sorted(there), 5) or "nothing"}; data.{setting}=NAME takes one'
        )
    if found.startswith('test') and not wanted.startswith('test'):
        remarks.append(f'{where}: no split {wanted} in it; {found} stands in for it')
    return found
