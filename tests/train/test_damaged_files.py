"""Files damaged at random are read, or refused with one line: never another exception."""

import io
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from attnzoo.train import models
from attnzoo.train.checkpoint import load_weights, read_weights, translate_weights
from attnzoo.train.data.images import UnreadableImage, decode
from attnzoo.train.errors import UserError

QUICK = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Where (as a share of the file), how, and with how many bytes. The first bytes hold what readers trust.
PLACES = st.floats(0, 1) | st.floats(0, 0.02)
DAMAGE = st.lists(st.tuples(PLACES, st.sampled_from(['flip', 'zero', 'cut', 'repeat']), st.integers(1, 64)), max_size=4)


def damaged(data: bytes, damage: list[tuple[float, str, int]]) -> bytes:
    content = bytearray(data)
    for place, how, count in damage:
        start = int(place * len(content))
        if how == 'cut':
            del content[start:]
        elif how == 'repeat':
            content[start:start] = content[start : start + count]
        else:
            for index in range(start, min(start + count, len(content))):
                content[index] = 0 if how == 'zero' else content[index] ^ (1 << (index * 7 + count) % 8)
    return bytes(content)


def one_line(error: Exception) -> bool:
    return len(str(error).splitlines()) == 1 and len(str(error)) < 1500


@pytest.fixture(scope='module')
def weights(trained) -> bytes:
    return (trained.run / 'best.safetensors').read_bytes()


@QUICK
@given(damage=DAMAGE)
def test_a_run_s_weights(weights, tmp_path, damage):
    path = tmp_path / 'weights.safetensors'
    path.write_bytes(damaged(weights, damage))
    try:
        model, spec, _ = models.load(str(path))
        models.try_on_images(model, spec)
    except UserError as error:
        assert str(path) in str(error) or 'model' in str(error)
        assert one_line(error)


@QUICK
@given(damage=DAMAGE, legacy=st.booleans())
def test_a_pytorch_checkpoint(trained, tmp_path, damage, legacy):
    model, _, _ = models.load(str(trained.run))
    file = io.BytesIO()
    torch.save({'model': model.state_dict(), 'epoch': 3}, file, _use_new_zipfile_serialization=not legacy)
    path = tmp_path / 'weights.pth'
    path.write_bytes(damaged(file.getvalue(), damage))
    try:
        state, _ = read_weights(path)
        load_weights(model, translate_weights(model, state), str(path))
    except UserError as error:
        assert str(error).startswith(str(path)) and one_line(error)


@QUICK
@given(damage=DAMAGE, format=st.sampled_from(['png', 'jpeg', 'gif', 'tiff', 'webp', 'bmp', 'ppm']))
def test_an_image(trained, tmp_path, damage, format):
    file = io.BytesIO()
    with Image.open(trained.images / 'val' / 'red' / '00.png') as image:
        image.save(file, format)
    path = tmp_path / f'image.{format}'
    path.write_bytes(damaged(file.getvalue(), damage))
    try:
        assert decode(path).mode == 'RGB'
    except UnreadableImage as error:
        assert str(error) and one_line(error)


@pytest.mark.parametrize('name', ['weights.safetensors', 'weights.pth'])
def test_the_command_line_says_it_in_one_line(weights, name, tmp_path: Path, refused, trained):
    path = tmp_path / name
    path.write_bytes(weights[: len(weights) // 2])
    for verb in ('predict', 'eval', 'info'):
        more = [trained.images / 'val' / 'red' / '00.png'] if verb == 'predict' else []
        assert refused(verb, path, *more).startswith(str(path))
