"""Classes of image files: what `attnzoo predict` does."""

import csv
import glob
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import torch
from timm.utils import natural_key
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from .. import models
from ..checkpoint import write_atomically
from ..console import say
from ..data.images import EXTENSIONS, decode, is_hidden
from ..data.transforms import eval_transform
from ..download import is_url
from ..errors import UserError, complain, one_line

_SECONDS = 30  # that a server may take to answer
_WORKERS = 4  # processes that decode, where there is more than one batch


@dataclass(frozen=True)
class Prediction:
    """What one image shows: the likeliest classes first, or why it could not be read."""

    path: str
    classes: list[dict[str, Any]]  # class, index, probability (0..1)
    error: str = ''

    def record(self) -> dict[str, Any]:
        return {'path': self.path, **({'error': self.error} if self.error else {'classes': self.classes})}


def predict(
    target: str, inputs: Sequence[str], top: int, device: str, batch_size: int, json_file: str, csv_file: str
) -> int:
    """Print the likeliest classes of images with their probabilities, or write them to files.

    An image that cannot be read is named on stderr and counted, and the others go on.

    Args:
        inputs: image files, folders (all images below them), wildcards and URLs.
        top: how many classes of each image; all where the model has no more.
        json_file, csv_file: where to write instead of to stdout; '-' is stdout, '' is no file.

    Returns:
        Exit status: 1 where an image could not be read, else 0.
    """
    files = [file for file in (json_file, csv_file) if file]
    for file in files:
        if not Path(file).parent.is_dir():
            raise UserError(f'{file}: no folder {Path(file).parent}')
    place = models.pick_device(device)
    found = list(_expand(inputs))
    predictions = []
    for prediction in _predict(target, found, top, place, batch_size):
        predictions.append(prediction)
        if prediction.error:
            complain(f'cannot read image {prediction.path}: {prediction.error}')
        elif not files:
            say(_printable(prediction.path))
            for best in prediction.classes:
                say(f'  {100 * best["probability"]:6.2f} %  {best["class"]}')
    _write(json_file, json.dumps([prediction.record() for prediction in predictions], indent=2) + '\n')
    _write(csv_file, _as_csv(predictions))
    failed = sum(bool(prediction.error) for prediction in predictions)
    if failed and len(predictions) > 1:
        complain(f'{failed} of {len(predictions)} images cannot be read')
    return int(failed > 0)


def _expand(inputs: Sequence[str]) -> Iterator[tuple[str, str]]:
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
            yield from _expand(matches) if matches else [(text, 'no file matches')]
        else:
            yield text, 'no such file'


def _predict(
    target: str, found: list[tuple[str, str]], top: int, device: torch.device, batch_size: int
) -> Iterator[Prediction]:
    if all(problem for _, problem in found):
        yield from (Prediction(path, [], problem) for path, problem in found)
        return
    model, spec, _ = models.load(target)
    models.try_on_images(model, spec)
    model.to(device).eval()
    workers = min(_WORKERS, os.cpu_count() or 1) if len(found) > batch_size else 0
    for batch in DataLoader(_Images(found, spec), batch_size, num_workers=workers, collate_fn=list):
        images = [image for _, image, _ in batch if image is not None]
        probabilities: Iterator[Tensor] = iter(_probabilities(model, torch.stack(images).to(device)) if images else [])
        for path, image, problem in batch:
            shares = next(probabilities) if image is not None else torch.empty(0)
            if not shares.isfinite().all():
                problem = 'the model returns NaN for it'
            best = shares.topk(min(top, len(shares)))
            classes = [
                {'class': spec.class_name(index), 'index': index, 'probability': probability}
                for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
            yield Prediction(path, classes, problem)


@torch.inference_mode()
def _probabilities(model: nn.Module, images: Tensor) -> Tensor:
    return model(images).float().softmax(-1).cpu()


class _Images(Dataset):
    """Path, transformed image and reason, where there is no image."""

    def __init__(self, found: list[tuple[str, str]], spec: models.ModelSpec):
        self.found, self.transform = found, eval_transform(spec.data)

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int) -> tuple[str, Tensor | None, str]:
        path, problem = self.found[index]
        if problem:
            return path, None, problem
        try:
            return path, self.transform(decode(_fetch(path) if is_url(path) else path, self.transform.channels)), ''
        except Exception as error:  # of the network too
            return path, None, one_line(error)


def _fetch(url: str) -> io.BytesIO:
    with urlopen(url, timeout=_SECONDS) as answer:
        return io.BytesIO(answer.read())


def _as_csv(predictions: list[Prediction]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['path', 'rank', 'class', 'index', 'probability', 'error'])
    for prediction in predictions:
        for rank, best in enumerate(prediction.classes, 1):
            writer.writerow([prediction.path, rank, best['class'], best['index'], best['probability'], ''])
        if prediction.error:
            writer.writerow([prediction.path, '', '', '', '', prediction.error])
    return text.getvalue()


def _write(file: str, text: str) -> None:
    if file == '-':
        print(_printable(text), end='')
    elif file:
        write_atomically(Path(file), text.encode(errors='surrogateescape'))
        say(f'wrote {file}')


def _printable(text: str) -> str:
    """Text with '?' for the bytes of a file name that no encoding explains."""
    return text.encode(errors='replace').decode()
