"""Boxes, masks and names of objects, drawn on their image."""

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LEAST = 0.3  # score from which on a detection is drawn
_SMALLEST = 384  # pixels that the longer side of a picture has at least, so that names can be read


def draw_objects(image: Image.Image, found: dict[str, Any], names: Sequence[str], least: float = LEAST) -> Image.Image:
    """A picture of an image, enlarged by a whole factor where it is small, with what was found on it.

    Args:
        found: boxes (N, 4), labels from 1 on, scores and perhaps masks as run-length encodings, the best first.
        names: of the classes, by label - 1.
    """
    factor = max(1, -(-_SMALLEST // max(image.size)))
    picture = image.convert('RGB').resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    drawn = [index for index, score in enumerate(found['scores']) if score >= least][::-1]  # the best on top
    for index in drawn if 'masks' in found else ():
        from . import masks  # needs a package of an extra, and boxes do not

        shape = Image.fromarray(masks.decode(found['masks'][index], image.height, image.width) * np.uint8(115))
        picture.paste(_color(int(found['labels'][index])), mask=shape.resize(picture.size, Image.Resampling.NEAREST))
    pen = ImageDraw.Draw(picture)
    size = max(12, min(picture.size) // 28)
    font = ImageFont.load_default(size)
    for index in drawn:
        label, box = int(found['labels'][index]), [round(float(value) * factor) for value in found['boxes'][index]]
        color = _color(label)
        pen.rectangle(box, outline=color, width=max(2, size // 6))
        text = f'{names[label - 1]} {found["scores"][index]:.2f}'
        left, top, right, bottom = pen.textbbox((0, 0), text, font)
        x, y = min(box[0], picture.width - round(right)), max(0, box[1] - round(bottom) - 2)
        pen.rectangle([x + left - 1, y + top - 1, x + right + 1, y + bottom + 1], fill=color)
        pen.text((x, y), text, fill='white' if sum(color) < 400 else 'black', font=font)
    return picture


def _color(label: int) -> tuple[int, int, int]:
    """A colour for each label; neighbours are far apart."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)
