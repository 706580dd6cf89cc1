"""One decoder of images for training, scoring and prediction."""

import os
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import one_line

# What a folder's files are taken for. Case does not matter.
EXTENSIONS = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.ppm', '.pgm', '.jp2', '.avif')

_PIXEL_MODES = {1: 'L', 3: 'RGB'}  # by channels


class UnreadableImage(ValueError):
    """An image that cannot be decoded. Its text is the reason, one line that does not name the image."""


def decode(source: str | os.PathLike | IO[bytes] | Image.Image, channels: int = 3) -> Image.Image:
    """An image as a viewer shows it, with 8 bits a channel.

    Turned upright by its EXIF orientation; what is transparent is laid on white. 16-bit grey values are scaled to 8
    bits, from 0..65535 also where the format keeps them in 32 bits; floats are scaled from 0..1. Of an animation the
    first frame.

    Args:
        source: a path, a file open for reading, or what Pillow has opened.
        channels: 1 (grey) or 3 (RGB).

    Raises:
        UnreadableImage: no file, no image, cut off, too large (Pillow's limit), values out of range.
    """
    try:
        if isinstance(source, Image.Image):
            return _convert(source, _PIXEL_MODES[channels])
        with Image.open(source) as image:
            return _convert(image, _PIXEL_MODES[channels])
    except UnidentifiedImageError as error:
        raise UnreadableImage('not an image in a format that can be read') from error
    except OSError as error:  # its text may hold the path
        raise UnreadableImage(error.strerror or one_line(error)) from error
    except Exception as error:  # of a dozen decoders: SyntaxError, struct.error, zlib.error, DecompressionBombError ...
        raise UnreadableImage(one_line(error)) from error


def is_hidden(path: str) -> bool:
    """Whether a file or a folder on a relative path is one that systems hide or leave behind.

    .DS_Store, ._photo.jpg (AppleDouble), .ipynb_checkpoints/, __MACOSX/.
    """
    return any(part.startswith('.') or part == '__MACOSX' for part in path.replace(os.sep, '/').split('/'))


def _convert(image: Image.Image, mode: str) -> Image.Image:
    image.load()  # now, so that what follows sees whole pixels and errors of the decoder are not taken for its own
    image = _turn_upright(image)
    if image.mode.startswith('I'):  # I;16 in any byte order, and I, which has 32 bits
        image = _to_grey(np.asarray(image), 65535)
    elif image.mode == 'F':
        image = _to_grey(np.asarray(image), 1)
    elif image.has_transparency_data:
        # An RGBA that keeps its colours multiplied (RGBa) has one way back.
        image = image.convert('LA' if image.mode == 'La' else 'RGBA').convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    if image.mode not in _PIXEL_MODES.values():
        image = image.convert('RGB')  # LAB has no other way to grey
    return image.convert(mode)


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data; the pixels are whole
        return image


def _to_grey(values: np.ndarray, highest: int) -> Image.Image:
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= highest):  # not (nan) either
        raise UnreadableImage(f'{values.dtype} values from {low} to {high}, expected 0 to {highest}')
    return Image.fromarray((values.astype(np.float64) * (255 / highest)).round().astype(np.uint8))
