"""Objects on image files: what `attnzoo predict` does with the run of a detector."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .. import models
from ..console import say
from ..data.images import decode
from ..data.samples import Source
from ..errors import UserError, complain
from ..inputs import batches, check_folders, expand, printable, write
from .detections import as_input, as_results, detect
from .drawing import draw_objects


def predict(
    target: str,
    inputs: Sequence[str],
    top: int | None,
    least: float,
    device: str,
    batch_size: int,
    json_file: str,
    folder: str,
) -> int:
    """Print the objects on images, or write or draw them.

    An image that cannot be read is named on stderr and counted, and the others go on.

    Args:
        inputs: image files, folders (all images below them), wildcards and URLs.
        top: how many objects of each image to print and draw, the best; None: all.
        least: score from which on an object is printed and drawn.
        json_file: where to write all detections in COCO's result format; '-' is stdout, '' is no file. An image goes by
            the number that its name is, as in COCO, where all have one; else by its place among the inputs, from 1 on.
        folder: where to draw them; '' is nowhere.

    Returns:
        Exit status: 1 where an image could not be read, else 0.
    """
    check_folders(json_file, folder)
    if folder:
        Path(folder).mkdir(exist_ok=True)
    place = models.pick_device(device)
    found = list(expand(inputs))
    ids = _ids([path for path, _ in found])
    model, spec, _ = models.load(target)
    if not spec.detection:
        raise UserError(f'{target}: no detector')
    model.to(place).eval()
    names, results, failed = spec.classes, [], 0
    drawn: dict[str, str] = {}
    for number, (path, image, objects, problem) in enumerate(_detect(model, found, place, batch_size)):
        if problem or image is None:
            complain(f'cannot read image {path}: {problem}')
            failed += 1
            continue
        own = as_results(objects, ids[number], spec.detection['category_ids'])
        results += [{'file_name': path, **one} for one in own]
        best = [index for index, score in enumerate(objects['scores']) if score >= least][:top]
        if folder:
            chosen = {key: [values[index] for index in best] for key, values in objects.items()}
            name = _free_name(path, drawn)
            draw_objects(image, chosen, names, least).save(Path(folder) / name)
        if not (json_file or folder):
            say(printable(path) + ('' if best else ': nothing found'))
            for index in best:
                corners = ' '.join(f'{value:7.1f}' for value in objects['boxes'][index])
                say(f'  {100 * objects["scores"][index]:6.2f} %  {corners}  {names[objects["labels"][index] - 1]}')
    write(json_file, json.dumps(results) + '\n')
    if folder:
        say(f'drew {len(drawn)} images in {folder}')
    if failed and len(found) > 1:
        complain(f'{failed} of {len(found)} images cannot be read')
    return int(failed > 0)


def _detect(
    model: torch.nn.Module, found: list[tuple[str, str]], device: torch.device, batch_size: int
) -> Iterator[tuple[str, Image.Image | None, dict[str, Any], str]]:
    for batch in batches(found, _read, batch_size):
        images = [as_input(image) for _, image, _ in batch if image is not None]
        with torch.inference_mode():
            objects = iter(detect(model, images, device) if images else [])
        for path, image, problem in batch:
            yield path, image, next(objects) if image is not None else {}, problem


def _read(source: Source) -> Image.Image:
    return decode(source)


def _ids(paths: list[str]) -> list[int]:
    numbers = [int(stem) for path in paths if (stem := Path(path).stem).isascii() and stem.isdigit()]
    return numbers if len(set(numbers)) == len(paths) else list(range(1, len(paths) + 1))


def _free_name(path: str, drawn: dict[str, str]) -> str:
    """A name for the picture of a file that no other file has got."""
    stem = Path(path.partition('?')[0]).stem or 'image'
    name, number = f'{stem}.png', 1
    while name in drawn:
        number += 1
        name = f'{stem}-{number}.png'
    drawn[name] = path
    return name
