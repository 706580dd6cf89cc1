"""What predictions are made of and where they go: image files, folders, wildcards and URLs; files of text."""

import glob
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from timm.utils import natural_key
from torch.utils.data import DataLoader, Dataset

from .checkpoint import write_atomically
from .console import say
from .data.images import EXTENSIONS, is_hidden
from .data.samples import Source
from .download import is_url
from .errors import UserError, one_line

_SECONDS = 30  # that a server may take to answer
_WORKERS = 4  # processes that decode, where there is more than one batch


def expand(inputs: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The images that the inputs mean, and for inputs that mean none the reason."""
    for text in inputs:
        if os.path.isdir(text):
            below = [
                os.path.join(folder, name) for folder, _, names in os.walk(text, followlinks=True) for name in names
            ]
            paths = [path for path in below if not is_hidden(os.path.relpath(path, text))]
            paths = [path for path in paths if path.lower().endswith(EXTENSIONS)]
            yield from [(path, '') for path in sorted(paths, key=natural_key)] or [(text, 'no images in this folder')]
        elif is_url(text) or os.path.exists(text):
            yield text, ''
        elif glob.has_magic(text):
            matches = sorted(glob.glob(text, recursive=True), key=natural_key)
            yield from expand(matches) if matches else [(text, 'no file matches')]
        else:
            yield text, 'no such file'


def batches(
    found: list[tuple[str, str]], read: Callable[[Source], Any], batch_size: int
) -> Iterator[list[tuple[str, Any, str]]]:
    """Path, image and reason, where there is no image, of what `expand` has found.

    Args:
        read: of one image.
    """
    workers = min(_WORKERS, os.cpu_count() or 1) if len(found) > batch_size else 0
    yield from DataLoader(_Images(found, read), batch_size, num_workers=workers, collate_fn=list)


class _Images(Dataset):
    def __init__(self, found: list[tuple[str, str]], read: Callable[[Source], Any]):
        self.found, self.read = found, read

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int) -> tuple[str, Any, str]:
        path, problem = self.found[index]
        if problem:
            return path, None, problem
        try:
            return path, self.read(_fetch(path) if is_url(path) else path), ''
        except Exception as error:  # of the network too
            return path, None, one_line(error)


def _fetch(url: str) -> io.BytesIO:
    with urlopen(url, timeout=_SECONDS) as answer:
        return io.BytesIO(answer.read())


def check_folders(*files: str) -> None:
    """Check that these files can be written; '' and '-' are none."""
    for file in files:
        if file and not Path(file).parent.is_dir():
            raise UserError(f'{file}: no folder {Path(file).parent}')


def write(file: str, text: str) -> None:
    """Write a file; '-' is stdout, '' is no file."""
    if file == '-':
        print(printable(text), end='')
    elif file:
        write_atomically(Path(file), text.encode(errors='surrogateescape'))
        say(f'wrote {file}')


def printable(text: str) -> str:
    """Text with '?' for the bytes of a file name that no encoding explains."""
    return text.encode(errors='replace').decode()
