"""Classes of image files: what `attnzoo predict` does."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import models
from ..console import say
from ..data.images import decode
from ..data.samples import Source
from ..data.transforms import eval_transform
from ..errors import complain
from ..inputs import batches, check_folders, expand, printable, write


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
    check_folders(json_file, csv_file)
    place = models.pick_device(device)
    found = list(expand(inputs))
    predictions = []
    for prediction in _predict(target, found, top, place, batch_size):
        predictions.append(prediction)
        if prediction.error:
            complain(f'cannot read image {prediction.path}: {prediction.error}')
        elif not (json_file or csv_file):
            say(printable(prediction.path))
            for best in prediction.classes:
                say(f'  {100 * best["probability"]:6.2f} %  {best["class"]}')
    write(json_file, json.dumps([prediction.record() for prediction in predictions], indent=2) + '\n')
    write(csv_file, _as_csv(predictions))
    failed = sum(bool(prediction.error) for prediction in predictions)
    if failed and len(predictions) > 1:
        complain(f'{failed} of {len(predictions)} images cannot be read')
    return int(failed > 0)


def _predict(
    target: str, found: list[tuple[str, str]], top: int, device: torch.device, batch_size: int
) -> Iterator[Prediction]:
    if all(problem for _, problem in found):
        yield from (Prediction(path, [], problem) for path, problem in found)
        return
    model, spec, _ = models.load(target)
    models.try_on_images(model, spec)
    model.to(device).eval()
    for batch in batches(found, _Read(spec), batch_size):
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


class _Read:
    """One image as the model takes it. It can be pickled."""

    def __init__(self, spec: models.ModelSpec):
        self.transform = eval_transform(spec.data)

    def __call__(self, source: Source) -> Tensor:
        return self.transform(decode(source, self.transform.channels))


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
