"""A split in COCO's format on a disk: its images, and the boxes and masks of the objects on them, checked."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.samples import Samples, pick_split
from ..errors import UserError, few, one_line
from . import masks as encoding

_PLACES = ('annotations/instances_{}.json', 'annotations/{}.json', '{}/_annotations.coco.json', '{}.json')
_ROUNDED = 1.0  # pixels that a box may reach over the edge of its image, as rounding leaves it


@dataclass
class Objects:
    """The objects of one image that a detector learns from: no crowds, each box inside the image."""

    boxes: list[list[float]] = field(default_factory=list)  # x1, y1, x2, y2 in pixels
    labels: list[int] = field(default_factory=list)  # from 1 on
    masks: list[Any] = field(default_factory=list)  # polygons, or a run-length encoding, as the file has them


@dataclass(frozen=True)
class Picture:
    """An image of a split, as its file says it is.

    Attributes:
        id: of the image, in the annotations and in results.
    """

    id: int
    file: str
    width: int
    height: int


class Coco(Samples):
    """The images of a split with their objects.

    Args:
        root: holds the annotations and the images.
        split: name of the split; one of its usual names stands in for another.
        masks: read the masks too.
        bad_boxes: `drop`: leave out boxes without area or outside their image, and say so; `error`: raise.
        categories: names by label - 1, where the split must not number its own.

    Attributes:
        category_ids: id of each category in the file, by label - 1; None for one that is not in there.
        pictures: of all images, in the order of the file.
        annotations: of all objects, crowds among them, as `truth` has them.
        group: training batches are of so many images of one orientation, wide or tall; 1: of any.

    Raises:
        UserError: no such split, a file that is no COCO annotations, categories that are not among those.
    """

    def __init__(
        self, root: Path, split: str, *, masks: bool, bad_boxes: str = 'drop', categories: Sequence[str] | None = None
    ):
        self.remarks: list[str] = []
        self.split, self.file = _find(root, split, self.remarks)
        content = _read(self.file)
        self.group = 1
        self.pictures = [_picture(entry, self.file) for entry in content['images']]
        if not self.pictures:
            raise UserError(f'{self.file}: no images in it')
        self.folder = _image_folder(root, self.split, self.pictures[0].file)
        self.classes, ids = _categories(content['categories'], self.file)
        self.category_ids: list[int | None] = [*ids]
        numbers = {identifier: label for label, identifier in enumerate(ids, 1)}
        if categories is not None and self.classes != list(categories):
            numbers = self._number_as(categories, numbers, content['annotations'])
        self._index(content['annotations'], numbers, masks, bad_boxes)

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, item: int) -> tuple[str, Any]:
        return str(self.folder / self.pictures[item].file), (item, self.pictures[item], self.objects[item])

    def name(self, item: int) -> str:
        return f'{self.split}/{self.pictures[item].file}'

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """The numbers of all images, shuffled; `group` of them in a row are wide, or tall."""
        order = rng.permutation(len(self))
        if self.group == 1:
            return order
        rows: dict[bool, list[int]] = {False: [], True: []}
        grouped: list[int] = []
        for item in order.tolist():
            row = rows[self.pictures[item].width >= self.pictures[item].height]
            row.append(item)
            if len(row) == self.group:
                grouped += row
                row.clear()
        return np.array(grouped + rows[False] + rows[True])

    def truth(self, items: Iterable[int]) -> dict[str, Any]:
        """What is on these images, in COCO's format; an image goes by its number here, a category by its label."""
        images = {item: self.pictures[item] for item in sorted(set(items))}
        annotations = [dict(annotation) for annotation in self.annotations if annotation['image_id'] in images]
        for annotation in annotations:
            if 'segmentation' in annotation:
                picture = images[annotation['image_id']]
                shape = encoding.compress(annotation['segmentation'], picture.height, picture.width)
                annotation['segmentation'] = shape
        return {
            'images': [{'id': item, 'width': one.width, 'height': one.height} for item, one in images.items()],
            'annotations': annotations,
            'categories': [{'id': label, 'name': name} for label, name in enumerate(self.classes, 1)],
        }

    def _number_as(self, categories: Sequence[str], numbers: Mapping[int, int], annotations: Any) -> dict[int, int]:
        """Labels by category id, where they are those of other categories than the file's, whose `numbers` are."""
        used = {annotation.get('category_id') for annotation in annotations if isinstance(annotation, Mapping)}
        own = {identifier: self.classes[label - 1] for identifier, label in numbers.items()}
        unknown = [name for identifier, name in own.items() if identifier in used and name not in categories]
        if unknown:
            raise UserError(
                f'{self.file}: {len(unknown)} of its {len(own)} categories are none of the {len(categories)} of the '
                f'model ({few(list(categories))}): {few(unknown)}'
            )
        ids = {name: identifier for identifier, name in own.items()}
        self.classes = list(categories)
        self.category_ids = [ids.get(name) for name in categories]
        return {identifier: self.classes.index(name) + 1 for name, identifier in ids.items() if name in self.classes}

    def _index(self, annotations: Any, numbers: Mapping[int, int], masks: bool, bad_boxes: str) -> None:
        items = {picture.id: item for item, picture in enumerate(self.pictures)}
        if len(items) < len(self.pictures):
            twice = [identifier for identifier, count in Counter(one.id for one in self.pictures).items() if count > 1]
            raise UserError(f'{self.file}: several images have the id {twice[0]}')
        self.objects = [Objects() for _ in self.pictures]
        self.annotations: list[dict[str, Any]] = []
        bad: list[str] = []
        outside: list[str] = []
        for number, annotation in enumerate(annotations):
            where = f'{self.file}: annotation {_identifier(annotation, number)}'
            if not isinstance(annotation, Mapping):
                raise UserError(
                    f'{where} is {annotation!r:.60}, expected an object with image_id, category_id and bbox'
                )
            if annotation.get('image_id') not in items:
                raise UserError(f'{where} is of the image {annotation.get("image_id")!r}, which is not in the file')
            if annotation.get('category_id') not in numbers:
                raise UserError(f'{where} has category_id {annotation.get("category_id")!r}, which is not in the file')
            item, label = items[annotation['image_id']], numbers[annotation['category_id']]
            picture, crowd = self.pictures[item], bool(annotation.get('iscrowd'))
            box, problem = _box(annotation.get('bbox'), picture)
            shape = annotation.get('segmentation') if masks else None
            if masks and not problem:
                problem = _mask_problem(shape, picture, crowd)
            named = f'annotation {_identifier(annotation, number)} of {picture.file}'
            if problem:
                bad.append(f'{named} ({problem})')
                continue
            assert box is not None
            x, y, width, height = annotation['bbox']
            if min(x, y) < -_ROUNDED or x + width > picture.width + _ROUNDED or y + height > picture.height + _ROUNDED:
                outside.append(f'{named} ({_numbers(annotation["bbox"])} in {picture.width} x {picture.height})')
            size = (box[2] - box[0], box[3] - box[1])
            kept = {
                'id': len(self.annotations) + 1,
                'image_id': item,
                'category_id': label,
                'bbox': [box[0], box[1], *size],
                'area': float(annotation.get('area') or size[0] * size[1]),
                'iscrowd': int(crowd),
            }
            if masks:
                shape = _packed(shape)
                kept['segmentation'] = shape
            self.annotations.append(kept)
            if not crowd:
                objects = self.objects[item]
                objects.boxes.append(box)
                objects.labels.append(label)
                if masks:
                    objects.masks.append(shape)
        self._report(bad, 'left out: no area, outside, or a mask that does not fit', 'are bad', bad_boxes)
        self._report(outside, 'cut at the edge of their image', 'reach over the edge of their image', bad_boxes)
        if not any(objects.boxes for objects in self.objects):
            raise UserError(f'{self.file}: no object in it that a detector could learn or be scored by')

    def _report(self, found: list[str], done: str, are: str, bad_boxes: str) -> None:
        if not found:
            return
        if bad_boxes == 'error':
            raise UserError(f'{self.file}: {len(found)} objects {are}: {few(found)}; detection.bad_boxes=drop goes on')
        self.remarks.append(f'{self.file}: {len(found)} objects {done}: {few(found)}')


def _find(root: Path, split: str, remarks: list[str]) -> tuple[str, Path]:
    """Name of the split and its file of annotations. COCO's own splits also go by their name without the year."""
    if not root.is_dir():
        raise UserError(f'data.root={root}: no such folder')
    for place in _PLACES:
        if (path := root / place.format(split)).is_file():
            return split, path
    there: dict[str, Path] = {}
    for place in reversed(_PLACES):
        before, after = place.split('{}')
        for path in root.glob(place.format('*')):
            name = path.relative_to(root).as_posix()[len(before) : -len(after)]
            if not name.startswith('instances_'):
                there |= {name.removesuffix('2017'): path, name: path}
    if not there:
        raise UserError(f'data.root={root}: no annotations in it, expected {root / _PLACES[0].format(split)}')
    name = pick_split(split, list(there), f'data.root={root}', remarks)
    path = there[name]
    return next(other for other in sorted(there, reverse=True) if there[other] == path), path


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from error
    except (ValueError, RecursionError) as error:
        what = f'no JSON: {one_line(error)}' if path.stat().st_size else 'an empty file'
        raise UserError(f'{path}: {what}, expected annotations in COCO format') from error
    missing = [
        name
        for name in ('images', 'annotations', 'categories')
        if not isinstance(content, dict) or not isinstance(content.get(name), list)
    ]
    if missing:
        raise UserError(f'{path}: no list of {", ".join(missing)} in it, expected annotations in COCO format')
    return content


def _picture(entry: Any, path: Path) -> Picture:
    try:
        picture = Picture(int(entry['id']), str(entry['file_name']), int(entry['width']), int(entry['height']))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f'{path}: the image {entry!r:.80} has no id, file_name, width and height ({one_line(error)})'
        ) from error
    if min(picture.width, picture.height) < 1:
        raise UserError(f'{path}: {picture.file} is {picture.width} x {picture.height} pixels')
    return picture


def _image_folder(root: Path, split: str, first: str) -> Path:
    """Where the images of a split lie: in a folder of its name, or beside all others."""
    folders = [root / split, root / 'images' / split, root / 'images', root]
    found = [folder for folder in folders if (folder / first).is_file()]
    return (found or [folder for folder in folders if folder.is_dir()])[0]


def _categories(entries: Any, path: Path) -> tuple[list[str], list[int]]:
    """Names and ids of the categories, by their id."""
    try:
        found = sorted((int(entry['id']), str(entry['name'])) for entry in entries)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f'{path}: a category has no id and name: {one_line(error)}') from error
    ids, names = [identifier for identifier, _ in found], [name for _, name in found]
    for what, values in (('id', ids), ('name', names)):
        if twice := [value for value, count in Counter(values).items() if count > 1]:
            raise UserError(f'{path}: several categories have the {what} {twice[0]!r}')
    if not found:
        raise UserError(f'{path}: no categories in it')
    return names, ids


def _identifier(annotation: Any, number: int) -> Any:
    return annotation.get('id', f'number {number}') if isinstance(annotation, Mapping) else f'number {number}'


def _box(box: Any, picture: Picture) -> tuple[list[float] | None, str]:
    """A box of x, y, width, height as its corners inside the image, or what is wrong with it."""
    try:
        x, y, width, height = map(float, box)
    except (TypeError, ValueError):
        return None, f'its bbox is {box!r:.40}'
    if not all(map(math.isfinite, (x, y, width, height))):
        return None, f'its bbox is {_numbers(box)}'
    if width <= 0 or height <= 0:
        return None, f'no area: {_numbers(box)}'
    corners = [max(x, 0.0), max(y, 0.0), min(x + width, picture.width), min(y + height, picture.height)]
    if corners[2] <= corners[0] or corners[3] <= corners[1]:
        return None, f'outside: {_numbers(box)} in {picture.width} x {picture.height}'
    return corners, ''


def _numbers(box: Iterable[float]) -> str:
    return ', '.join(f'{number:g}' for number in box)


def _mask_problem(shape: Any, picture: Picture, crowd: bool) -> str:
    if isinstance(shape, Mapping):
        size = shape.get('size')
        if size != [picture.height, picture.width]:
            return f'its mask is of {size}, the image of {[picture.height, picture.width]} (height, width)'
        return '' if shape.get('counts') else 'its mask is empty'
    if not isinstance(shape, list) or not shape:
        return 'it has no mask'
    rings = [ring for ring in shape if isinstance(ring, list) and len(ring) >= 6 and len(ring) % 2 == 0]
    return '' if len(rings) == len(shape) else 'its mask has a polygon of fewer than three points'


def _packed(shape: Any) -> Any:
    """A mask in less memory: COCO's polygons as Python numbers take gigabytes."""
    return shape if isinstance(shape, Mapping) else [np.asarray(ring, np.float64) for ring in shape]
