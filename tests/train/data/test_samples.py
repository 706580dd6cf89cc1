"""Folders as people have them."""

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attnzoo.train.config import DataConfig
from attnzoo.train.data import loading
from attnzoo.train.data.samples import Folder
from attnzoo.train.data.transforms import Transform, eval_transform
from attnzoo.train.errors import UserError

LOOK = {
    'input_size': (3, 8, 8),
    'interpolation': 'bilinear',
    'mean': (0.0, 0.0, 0.0),
    'std': (1.0, 1.0, 1.0),
    'crop_pct': 1.0,
    'crop_mode': 'center',
}


def draw(path: Path, color: tuple[int, int, int] = (200, 0, 0), **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (10, 10), color).save(path, **options)


def open_split(root: Path, split: str = 'train', classes: list[str] | None = None):
    return loading.open_dataset(DataConfig(root=str(root), workers=0), split, classes)


def names(samples: Folder) -> list[str]:
    return [samples.name(index) for index in range(len(samples))]


def test_hidden_files_and_folders_and_other_files_are_no_images(tmp_path: Path):
    for name in ('cat/1.png', 'dog/1.png', 'dog/._1.png', '.trash/1.png', 'cat/.ipynb_checkpoints/1.png'):
        draw(tmp_path / 'train' / name)
    draw(tmp_path / 'train' / '__MACOSX' / 'cat' / '1.png')
    for name in ('.DS_Store', 'cat/.DS_Store', 'cat/notes.txt', 'labels.csv'):
        (tmp_path / 'train' / name).write_text('')
    samples = open_split(tmp_path)
    assert samples.classes == ['cat', 'dog'] and samples.remarks == []
    assert names(samples) == ['train/cat/1.png', 'train/dog/1.png']


def test_images_beside_the_class_folders_are_reported_and_make_no_class(tmp_path: Path):
    for name in ('cat/1.png', 'dog/1.png', 'stray.png', 'other.jpg'):
        draw(tmp_path / 'train' / name)
    (tmp_path / 'train' / 'empty').mkdir()
    samples = open_split(tmp_path)
    folder = tmp_path / 'train'
    assert samples.classes == ['cat', 'dog']
    assert samples.remarks == [
        f'left out, because they lie in no class folder of {folder}: other.jpg, stray.png',
        f'no classes, because no image is in these folders of {folder}: empty',
    ]
    shutil.rmtree(folder / 'cat')
    shutil.rmtree(folder / 'dog')
    with pytest.raises(UserError, match=r'no image in class folders of .*; 2 lie beside them \(other.jpg, stray.png\)'):
        open_split(tmp_path)


def test_what_a_run_leaves_out_it_says_once(images: Path, recipe: Path, tmp_path: Path, attnzoo):
    draw(images / 'train' / 'stray.png')
    draw(images / 'val' / 'stray.png')
    result = attnzoo('train', recipe, f'data.root={images}', f'output={tmp_path / "run"}', 'train.epochs=1')
    assert result.code == 0, result
    assert result.out.count('stray.png') == 2 and '3 classes' in result.out
    scored = attnzoo('eval', tmp_path / 'run')
    assert scored.code == 0 and scored.out.count('stray.png') == 1 and '24' in scored.out


def test_validation_folders_that_training_does_not_know_are_an_error(images, recipe, tmp_path, refused):
    draw(images / 'val' / 'yellow' / '1.png')
    draw(images / 'val' / 'purple' / '1.png')
    line = refused('train', recipe, f'data.root={images}', f'output={tmp_path / "run"}')
    assert 'has classes that training does not know: purple, yellow (it knows blue, green, red)' in line


def test_validation_is_numbered_as_training(images: Path):
    """Without its first class, whose number then is nobody's."""
    shutil.rmtree(images / 'val' / 'blue')
    samples = open_split(images, 'validation', open_split(images).classes)
    assert samples.classes == ['blue', 'green', 'red']
    assert [samples[index][1] for index in range(len(samples))] == [1] * 8 + [2] * 8


def test_names_of_any_script_links_and_endings(tmp_path: Path):
    """Composed and decomposed letters are one class: macOS writes them apart, and everyone else together."""
    umlaut, kinds = 'grüne Äpfel', {'1.PNG': {}, '2.JPEG': {}, '3.webp': {'lossless': True}, '4.gif': {}, '5.tif': {}}
    for name, options in kinds.items():
        draw(tmp_path / 'train' / unicodedata.normalize('NFD', umlaut) / name, **options)
    draw(tmp_path / 'elsewhere' / '猫 1' / '1.jpg')
    (tmp_path / 'train' / '猫').symlink_to(tmp_path / 'elsewhere' / '猫 1')
    draw(tmp_path / 'val' / unicodedata.normalize('NFC', umlaut) / '1.bmp')
    samples = open_split(tmp_path)
    assert samples.classes == [umlaut, '猫']
    assert names(open_split(tmp_path, 'validation', samples.classes)) == [f'val/{umlaut}/1.bmp']
    loaded = loading.eval_loader(DataConfig(workers=0), samples, loading.Labelled(eval_transform(LOOK), 2), 0, 1)
    pixels, labels, problems = next(iter(loaded))
    assert not problems and labels.tolist() == [0] * 5 + [1]
    assert torch.allclose(pixels[:, :, 4, 4], torch.tensor([200 / 255, 0.0, 0.0]), atol=0.02)


def test_classes_are_numbered_as_people_count(tmp_path: Path):
    for name in ('class 10', 'class 2', 'Class 1', 'b', 'B'):
        draw(tmp_path / 'train' / name / '10.png')
        draw(tmp_path / 'train' / name / '9.png')
    samples = open_split(tmp_path)
    assert samples.classes == ['B', 'b', 'Class 1', 'class 2', 'class 10']
    assert names(samples)[-2:] == ['train/class 10/9.png', 'train/class 10/10.png']


def test_endings_that_are_asked_for(tmp_path: Path):
    draw(tmp_path / 'train' / 'cat' / '1.png')
    draw(tmp_path / 'train' / 'cat' / '2.jpg')
    config = DataConfig(root=str(tmp_path), input_key='jpg;.jpeg')
    assert names(loading.open_dataset(config, 'train')) == ['train/cat/2.jpg']


def test_a_folder_of_test_images_stands_in_for_validation(images: Path):
    (images / 'val').rename(images / 'test')
    samples = open_split(images, 'validation')
    assert len(samples) == 24
    assert samples.remarks == [f'data.root={images}: no split validation in it; test stands in for it']
    (images / 'dev').mkdir()
    draw(images / 'dev' / 'red' / '1.png')
    assert open_split(images, 'validation').remarks == []
    assert len(open_split(images, 'test')) == 24


def test_pixels_of_every_kind_reach_the_model(tmp_path: Path):
    """16 bits, transparency, orientation: one decoder for the folder of a run as for a single image."""
    folder = tmp_path / 'train' / 'grey'
    folder.mkdir(parents=True)
    Image.fromarray(np.full((8, 8), 32896, np.uint16)).save(folder / '1.png')
    Image.new('RGBA', (8, 8), (0, 0, 0, 0)).save(folder / '2.png')
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    stripes = np.zeros((8, 8, 3), np.uint8)
    stripes[0] = 255
    Image.fromarray(stripes).save(folder / '3.png', exif=exif)
    samples = open_split(tmp_path)
    pixels, _, problems = next(
        iter(loading.eval_loader(DataConfig(workers=0), samples, loading.Labelled(eval_transform(LOOK), 1), 0, 1))
    )
    assert not problems
    assert torch.allclose(pixels[0], torch.tensor(128 / 255)) and torch.equal(pixels[1], torch.ones(3, 8, 8))
    assert torch.equal(pixels[2, 0].mean(1), torch.tensor([0.0] * 7 + [1.0]))


def test_an_image_that_a_transform_fails_on_is_named(tmp_path: Path):
    """As with memory for an image of a million by one pixel."""
    draw(tmp_path / 'train' / 'cat' / '1.png')
    Image.new('RGB', (1, 1)).save(tmp_path / 'train' / 'cat' / 'tiny.png')

    def refuse_tiny(image: Image.Image) -> torch.Tensor:
        if min(image.size) < 2:
            raise MemoryError
        return torch.zeros(3, 8, 8)

    reader = loading.Labelled(Transform(3, refuse_tiny), 1)
    source = loading.TrainLoader(DataConfig(batch_size=2, workers=0), open_split(tmp_path), reader, 0, 1, 0, 1)
    images, _, problems = next(source.epoch(0, 0))
    assert len(images) == 2 and problems == [('train/cat/tiny.png', 'MemoryError')]


def test_grey_models_train_score_and_predict_on_one_channel(images: Path, recipe: Path, tmp_path: Path, attnzoo):
    run = tmp_path / 'run'
    arguments = ('train', recipe, f'data.root={images}', f'output={run}', 'train.epochs=1', 'model.kwargs.in_chans=1')
    for backend in ('timm', 'albumentations'):
        result = attnzoo(*arguments, f'data.augment.backend={backend}', 'resume=never')
        assert result.code == 0, result
    assert attnzoo('eval', run).code == 0
    assert attnzoo('predict', run, images / 'val' / 'red' / '00.png').code == 0


def test_models_of_other_channels_are_refused(images: Path, recipe: Path, tmp_path: Path, refused):
    line = refused('train', recipe, f'data.root={images}', f'output={tmp_path}/run', 'model.kwargs.in_chans=4')
    assert 'in_chans=4' in line


@pytest.mark.parametrize('name', ['tfds/mnist', 'hfds/', 'torch', 'nonsense/x'])
def test_formats_that_are_none(name: str):
    with pytest.raises(UserError, match=rf'data\.format={name}: expected auto, digits, folder, torch/NAME, hfds/NAME'):
        loading.open_dataset(DataConfig(format=name, root='x'), 'train')
