"""Prediction: what it takes, where it writes, and what it does about images that cannot be read."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from attnzoo.train import models


def records(path: Path) -> list[dict]:
    return json.loads(path.read_text())


def test_folders_wildcards_urls_and_files_give_what_the_model_computes(trained, tmp_path, attnzoo, serve):
    server = serve(trained.images)
    val, out = trained.images / 'val', tmp_path / 'out.json'
    (tmp_path / 'more').mkdir()
    shutil.copy(val / 'blue' / '00.png', tmp_path / 'more' / '.hidden.png')
    shutil.copy(val / 'blue' / '00.png', tmp_path / 'more' / 'x.PNG')
    (tmp_path / 'more' / 'notes.txt').write_text('no image')
    result = attnzoo(
        *(
            'predict',
            trained.run,
            val / 'green',
            f'{val}/red/0[12].png',
            f'{server}/val/blue/03.png',
            tmp_path / 'more',
        ),
        *('--json', out, '--batch-size', '3', '--device', 'cpu'),
    )
    assert result.code == 0 and not result.err and result.out.strip() == f'wrote {out}', result
    expected = [str(val / 'green' / f'{index:02}.png') for index in range(8)]
    expected += [f'{val}/red/01.png', f'{val}/red/02.png', f'{server}/val/blue/03.png', f'{tmp_path}/more/x.PNG']
    found = records(out)
    assert [record['path'] for record in found] == expected

    model, spec, _ = models.load(str(trained.run))
    mean, std = torch.tensor(spec.data['mean']), torch.tensor(spec.data['std'])
    for record in (found[0], found[9]):
        # The recipe's images are of 32 x 32, and those on the disk of 36 x 40: timm resizes and crops.
        image = timm.data.create_transform(**spec.data)(Image.open(record['path']))
        assert torch.allclose(image.mean((1, 2)), (pixels(record['path']) - mean) / std, atol=0.2)
        with torch.no_grad():
            probabilities = model.eval()(image[None]).softmax(-1)[0]
        for found_class in record['classes']:
            assert found_class['class'] == spec.classes[found_class['index']]
            assert found_class['probability'] == pytest.approx(float(probabilities[found_class['index']]), abs=1e-5)
        assert record['classes'][0]['class'] == Path(record['path']).parent.name


def pixels(path: str) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(path)).mean((0, 1)) / 255).float()


def test_what_cannot_be_read_is_named_and_counted_and_the_others_go_on(trained, tmp_path, attnzoo):
    red = trained.images / 'val' / 'red'
    broken, cut = tmp_path / 'broken.png', tmp_path / 'cut.png'
    broken.write_bytes(b'no image')
    cut.write_bytes((red / '00.png').read_bytes()[:600])
    (tmp_path / 'empty').mkdir()
    inputs = (red / '00.png', broken, 'http://127.0.0.1:9/x.png', red / '01.png', cut, tmp_path / 'empty', '*.nothing')
    result = attnzoo('predict', trained.run, *inputs, '--json', tmp_path / 'out.json', '--csv', tmp_path / 'out.csv')
    assert result.code == 1
    lines = result.err.splitlines()
    assert len(lines) == 6 and lines[-1] == 'attnzoo: 5 of 7 images cannot be read'
    for line, name in zip(
        lines, (broken, 'http://127.0.0.1:9/x.png', cut, tmp_path / 'empty', '*.nothing'), strict=False
    ):
        assert line.startswith(f'attnzoo: cannot read image {name}: ')
    assert lines[3].endswith('no images in this folder') and lines[4].endswith('no file matches')

    found = records(tmp_path / 'out.json')
    assert [sorted(record) for record in found] == [
        ['classes', 'path'] if index in (0, 3) else ['error', 'path'] for index in range(7)
    ]
    with open(tmp_path / 'out.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['rank'] for row in rows] == ['1', '2', '3', '', '', '1', '2', '3', '', '', '']
    for record in found:
        own = [row for row in rows if row['path'] == record['path']]
        assert [row['error'] for row in own if row['error']] == ([record['error']] if 'error' in record else [])
        written = [(row['class'], int(row['index']), float(row['probability'])) for row in own if row['rank']]
        assert written == [tuple(best.values()) for best in record.get('classes', [])]

    plain = attnzoo('predict', trained.run, red / '00.png', broken)
    assert plain.code == 1 and plain.out.splitlines()[0] == str(red / '00.png') and 'red' in plain.out.splitlines()[1]


def test_as_many_classes_as_asked_for_and_no_more_than_there_are(trained, attnzoo):
    image = trained.images / 'val' / 'red' / '00.png'
    assert len(attnzoo('predict', trained.run, image, '--top', '1').out.splitlines()) == 2
    assert len(attnzoo('predict', trained.run, image, '--top', '99').out.splitlines()) == 4
    [record] = json.loads(attnzoo('predict', trained.run, image, '--top', '2', '--json', '-').out)
    assert len(record['classes']) == 2


def test_images_that_are_no_square_and_grey_ones(trained, tmp_path, attnzoo):
    """A run on maps of 32 x 64 with one channel, from pictures of any kind."""
    run, recipe = tmp_path / 'run', trained.run / 'config.yaml'
    arguments = (
        f'output={run}',
        'train.epochs=1',
        'data.image_size=[32, 64]',
        'model.kwargs.in_chans=1',
        'resume=never',
    )
    assert attnzoo('train', recipe, *arguments).code == 0
    _, spec, _ = models.load(str(run))
    assert list(spec.data['input_size']) == [1, 32, 64] and len(spec.data['mean']) == len(spec.data['std']) == 1
    Image.fromarray(np.full((20, 90), 40000, np.uint16)).save(tmp_path / 'sixteen.png')
    result = attnzoo('predict', run, tmp_path / 'sixteen.png', trained.images / 'val' / 'blue')
    assert result.code == 0 and len(result.out.splitlines()) == 9 * 4
    assert attnzoo('eval', run).code == 0


def test_a_model_that_gives_nan_says_so_for_each_image(trained, tmp_path, attnzoo):
    model, spec, _ = models.load(str(trained.run))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state['head.fc.bias'][1] = torch.nan
    safetensors.torch.save_file(state, tmp_path / 'nan.safetensors', spec.metadata())
    result = attnzoo('predict', tmp_path / 'nan.safetensors', trained.images / 'val' / 'red' / '00.png')
    assert result.code == 1 and result.err.strip().endswith('00.png: the model returns NaN for it')
