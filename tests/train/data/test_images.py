"""Pixels that are known beforehand, in every mode that Pillow opens, come out as a viewer shows them."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from attnzoo.train.data.images import UnreadableImage, decode, is_hidden


def saved(image: Image.Image, kind: str = 'png', **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def pixels(source, channels: int = 3) -> list:
    image = decode(source, channels)
    assert image.mode == {1: 'L', 3: 'RGB'}[channels]
    return np.asarray(image)[0].tolist()


WIDE = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)  # 0, 1, 128 and 255 of 8 bits


@pytest.mark.parametrize(
    'file',
    [
        lambda: saved(Image.fromarray(WIDE)),
        lambda: saved(Image.frombytes('I;16B', (4, 1), WIDE.astype('>u2').tobytes()), 'tiff'),
        lambda: saved(Image.fromarray(WIDE.astype(np.int32)), 'tiff'),
        lambda: io.BytesIO(b'P5 4 1 65535\n' + WIDE.astype('>u2').tobytes()),  # a PGM: Pillow keeps it in 32 bits
        lambda: saved(Image.fromarray((WIDE / 65535).astype(np.float32)), 'tiff'),
    ],
    ids=['png', 'big-endian tiff', '32-bit tiff', 'pgm', 'float tiff'],
)
def test_wide_grey_values_are_scaled_not_clipped(file):
    assert pixels(file(), 1) == [0, 1, 128, 255]
    assert pixels(file(), 3) == [[value] * 3 for value in (0, 1, 128, 255)]


@pytest.mark.parametrize('values', [[[0.0, 1.5]], [[-0.1, 1.0]], [[float('nan'), 0.5]]])
def test_values_whose_range_nobody_knows_are_refused(values):
    with pytest.raises(UnreadableImage, match=r'float32 values from .* expected 0 to 1$'):
        decode(saved(Image.fromarray(np.array(values, np.float32)), 'tiff'))
    with pytest.raises(UnreadableImage, match='int32 values from 0 to 70000, expected 0 to 65535'):
        decode(saved(Image.fromarray(np.array([[0, 70000]], np.int32)), 'tiff'))


def test_what_is_transparent_is_laid_on_white():
    colors = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], np.uint8)
    rgba = Image.fromarray(colors)
    assert pixels(saved(rgba)) == [[10, 20, 30], [255] * 3, [127] * 3]
    assert pixels(saved(rgba, 'webp', lossless=True))[:2] == [[10, 20, 30], [255] * 3]
    assert pixels(saved(Image.fromarray(colors[..., 2:]))) == [[30] * 3, [255] * 3, [127] * 3]  # LA
    assert pixels(saved(Image.fromarray(colors[..., 2:])), 1) == [30, 255, 127]

    palette = Image.new('P', (2, 1))
    palette.putpalette([200, 0, 0, 0, 0, 200])
    palette.putpixel((1, 0), 1)
    assert pixels(saved(palette)) == [[200, 0, 0], [0, 0, 200]]
    assert pixels(saved(palette, transparency=0)) == [[255] * 3, [0, 0, 200]]
    assert pixels(saved(palette, 'gif', transparency=0)) == [[255] * 3, [0, 0, 200]]
    assert pixels(palette.convert('PA')) == [[200, 0, 0], [0, 0, 200]]

    rgb = Image.fromarray(np.array([[[1, 2, 3], [9, 9, 9]]], np.uint8))
    assert pixels(saved(rgb, transparency=(9, 9, 9))) == [[1, 2, 3], [255] * 3]


def test_the_other_modes_keep_their_colors():
    color = Image.new('RGB', (16, 16), (200, 60, 20))
    assert pixels(saved(color))[0] == [200, 60, 20]
    assert pixels(saved(color), 1)[0] == round(0.299 * 200 + 0.587 * 60 + 0.114 * 20)
    assert pixels(saved(Image.fromarray(np.array([[False, True]])))) == [[0] * 3, [255] * 3]  # 1
    assert pixels(saved(Image.new('L', (1, 1), 77))) == [[77] * 3]
    assert pixels(saved(Image.new('L', (1, 1), 77)), 1) == [77]
    profiles = ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB')
    lab = ImageCms.profileToProfile(color, *profiles, outputMode='LAB')
    for image, kind in ((color.convert('CMYK'), 'jpeg'), (color.convert('YCbCr'), 'jpeg'), (lab, 'tiff')):
        assert np.abs(np.array(pixels(saved(image, kind))[0]) - [200, 60, 20]).max() <= 4, image.mode
        assert abs(pixels(saved(image, kind), 1)[0] - 97) <= 4, image.mode
    assert np.abs(np.array(pixels(color.convert('HSV'))[0]) - [200, 60, 20]).max() <= 4


@pytest.mark.parametrize('kind', ['jpeg', 'png', 'webp'])
def test_exif_orientation_is_applied(kind: str):
    """A photograph taken with the camera turned: wide as stored, upright as shown, its left end at the top."""
    image = Image.fromarray(np.repeat(np.array([[255] * 8 + [0] * 24], np.uint8), 16, axis=0))
    exif = Image.Exif()
    exif[0x0112] = 6
    shown = decode(saved(image.convert('RGB'), kind, exif=exif), 1)
    assert shown.size == (16, 32)
    assert np.asarray(shown)[:7].min() > 200 and np.asarray(shown)[9:].max() < 50


def test_damaged_exif_does_not_cost_an_image():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, 'the camera'
    damaged = exif.tobytes().replace(b'\x01\x0f', b'\x01\x07')  # a text where a number belongs
    file = saved(Image.new('RGB', (8, 8), (0, 0, 255)), 'jpeg', exif=damaged)
    with Image.open(file) as image, pytest.raises(struct.error):
        ImageOps.exif_transpose(image)
    assert decode(file).size == (8, 8)


@pytest.mark.parametrize('kind', ['gif', 'webp', 'png', 'tiff'])
def test_the_first_frame_of_an_animation(kind: str):
    frames = [Image.new('RGB', (8, 8), color) for color in ((250, 0, 0), (0, 250, 0))]
    file = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(np.array(pixels(file)[0]) - [250, 0, 0]).max() < 8


def test_what_cannot_be_decoded_says_why_and_no_more(tmp_path: Path):
    """No address of an object in memory and no path: one image has one text."""
    jpeg = saved(Image.effect_noise((64, 64), 50), 'jpeg').getvalue()
    text = {
        b'': 'not an image in a format that can be read',
        b'this is no image': 'not an image in a format that can be read',
        jpeg[: len(jpeg) // 2]: 'image file is truncated (',
    }
    for content, reason in text.items():
        path = tmp_path / 'image.jpg'
        path.write_bytes(content)
        for source in (path, str(path), io.BytesIO(content)):
            with pytest.raises(UnreadableImage) as error:
                decode(source)
            assert str(error.value).startswith(reason) and '0x' not in str(error.value), error
    with pytest.raises(UnreadableImage, match=r'^No such file or directory$'):
        decode(tmp_path / 'nowhere.png')
    with pytest.raises(UnreadableImage, match=r'^Is a directory$'):
        decode(tmp_path)


def test_an_image_that_would_fill_the_memory_is_refused():
    """A PNG of a few bytes that claims 20,000 x 20,000 pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))

    header = struct.pack('>IIBBBBB', 20_000, 20_000, 8, 2, 0, 0, 0)
    bomb = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b'')
    with pytest.raises(UnreadableImage, match='exceeds limit'):
        decode(io.BytesIO(bomb))
    empty = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 0, 0, 8, 2, 0, 0, 0)) + chunk(b'IEND', b'')
    with pytest.raises(UnreadableImage):
        decode(io.BytesIO(empty))


def test_hidden_files_are_no_images():
    hidden = ('.DS_Store', '._x.png', 'cat/._x.png', '.ipynb_checkpoints/x.png', '__MACOSX/cat/x.png', '.x')
    assert all(map(is_hidden, hidden))
    assert not any(map(is_hidden, ('x.png', 'cat/x.png', 'cat.v2/x_1.png', 'a b/ü.jpg', '_x.png')))
    assert is_hidden(os.path.join('cat', '._x.png'))
