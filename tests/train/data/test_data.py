"""What is read, in what order, and what happens to what cannot be read."""

import dataclasses
import json
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attnzoo.train.config import AugmentConfig, DataConfig
from attnzoo.train.data import loading
from attnzoo.train.data.transforms import eval_transform, train_transform

LOOK = {
    'input_size': (3, 32, 32),
    'interpolation': 'bicubic',
    'mean': (0.5, 0.5, 0.5),
    'std': (0.5, 0.5, 0.5),
    'crop_pct': 1.0,
    'crop_mode': 'center',
}


def loader(config: DataConfig, *, seed: int = 0, accumulate: int = 1, rank: int = 0, processes: int = 1):
    samples = loading.open_dataset(config, config.train_split)
    transform = train_transform(config.augment, LOOK)
    return loading.TrainLoader(config, samples, loading.Labelled(transform, 10), seed, accumulate, rank, processes)


def same(one: list[loading.Batch], other: list[loading.Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(one, other, strict=True)
    )


def test_digits_are_split_by_class_and_the_same_for_everyone():
    train, held_out = loading.Digits('train'), loading.Digits('validation')
    assert (len(train), len(held_out)) == (1437, 360)
    assert not set(train.indices) & set(held_out.indices)
    counts = Counter(held_out[index][1] for index in range(360))
    assert sorted(counts) == list(range(10)) and set(counts.values()) <= {35, 36, 37}
    assert train[0][0].size == (8, 8) and train.pixels.max() == 255


@pytest.mark.parametrize('augment', [AugmentConfig(auto_augment='rand-m9-mstd0.5-inc1', erase=0.5), 'albumentations'])
def test_the_rest_of_an_epoch_is_the_same_for_any_number_of_workers(augment, images: Path):
    if augment == 'albumentations':
        augment = AugmentConfig(backend='albumentations', rotate=20, erase=0.5)
    config = DataConfig(root=str(images), batch_size=8, workers=0, augment=augment)
    whole = list(loader(config).epoch(1, 0))
    assert len(whole) == 9
    assert same(whole[3:], list(loader(config).epoch(1, 3)))
    assert same(whole, list(loader(dataclasses.replace(config, workers=2)).epoch(1, 0)))
    assert not same(whole, list(loader(config).epoch(2, 0)))
    assert not same(whole, list(loader(config, seed=1).epoch(1, 0)))


def test_processes_share_an_epoch_without_overlap():
    config = DataConfig(batch_size=64, workers=0)
    shares = [loader(config, rank=rank, processes=2) for rank in range(2)]
    assert [share.batches for share in shares] == [11, 11]
    keys = [key for share in shares for key in share.order]
    assert len(keys) == len({index for _, _, index in keys}) == 11 * 64 * 2


def test_batches_are_full_and_an_epoch_is_whole_steps():
    assert loader(DataConfig(batch_size=64, workers=0), accumulate=4).batches == 20
    few = loader(DataConfig(batch_size=1000, workers=0), accumulate=2)
    assert few.batches == 2
    assert Counter(index for _, _, index in few.order).most_common()[-1][1] == 1
    assert len(few.order) == 2000


def test_repeated_augmentation_shows_fewer_images_in_other_views():
    config = DataConfig(batch_size=64, workers=0, augment=AugmentConfig(repeats=3))
    repeated = loader(config)
    counts = Counter(index for _, _, index in repeated.order)
    assert len(repeated.order) == 22 * 64 and len(counts) == -(-22 * 64 // 3)
    images = next(repeated.epoch(0, 0))[0]
    assert not torch.equal(images[0], images[1])


def test_evaluation_sees_every_image_once_in_order(images: Path):
    config = DataConfig(root=str(images), batch_size=5, workers=0)
    samples = loading.open_dataset(config, 'validation')
    assert samples.classes == ['blue', 'green', 'red']
    transform = eval_transform(LOOK)
    for processes in (1, 2):
        shares = [
            loading.eval_loader(config, samples, loading.Labelled(transform, 3), rank, processes)
            for rank in range(processes)
        ]
        labels = torch.cat([labels for share in shares for _, labels, _ in share])
        assert torch.equal(labels.sort().values, torch.arange(3).repeat_interleave(8))


def spoil(images: Path) -> list[str]:
    """Three files that cannot be read: cut off, no image at all, nothing in it."""
    spoilt = [images / 'train' / 'red' / f'{index:02}.png' for index in range(3)]
    spoilt[0].write_bytes(spoilt[0].read_bytes()[:500])
    spoilt[1].write_bytes(b'this is no image')
    spoilt[2].write_bytes(b'')
    return [f'train/red/{path.name}' for path in spoilt]


@pytest.mark.parametrize('workers', [0, 2])
def test_unreadable_images_are_named_and_others_stand_in(workers: int, images: Path):
    names = spoil(images)
    config = DataConfig(root=str(images), batch_size=8, workers=workers)
    told: list[str] = []
    bad = loading.BadImages(limit=3, known=[], tell=told.append)
    source = loader(config)
    for epoch in (0, 1):
        for batch, labels, problems in source.epoch(epoch, 0):
            assert len(batch) == len(labels) == 8
            bad.add(problems)
        bad.share()
    assert sorted(bad.names) == names
    assert len(told) == 3 and all(line.startswith('cannot read image train/red/') for line in told)
    assert '(3 so far)' in told[-1]


def test_more_unreadable_images_than_the_limit_end_the_run(
    images: Path, recipe: Path, tmp_path: Path, refused, attnzoo
):
    spoil(images)
    arguments = ('train', recipe, f'data.root={images}', f'output={tmp_path / "run"}', 'train.epochs=1')
    line = refused(*arguments, 'data.max_bad_images=2')
    assert '3 images cannot be read, more than data.max_bad_images=2; the last is train/red/' in line
    result = attnzoo(*arguments, 'data.max_bad_images=3')
    assert result.code == 0, result
    assert result.out.count('cannot read image train/red/') == 3
    assert len(json.loads((tmp_path / 'run' / 'summary.json').read_text())['bad_images']) == 3


def test_evaluation_leaves_unreadable_images_out(images: Path, recipe: Path, tmp_path: Path, attnzoo):
    (images / 'val' / 'red' / '00.png').write_bytes(b'')
    run = tmp_path / 'run'
    assert attnzoo('train', recipe, f'data.root={images}', f'output={run}', 'train.epochs=1').code == 0
    assert json.loads((run / 'summary.json').read_text())['images'] == 23


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (['data.root=nowhere'], 'data.root=nowhere: no such folder'),
        (['data.format=folder'], 'data.root is empty; data.format=folder needs data.root=PATH'),
        (['data.root={empty}'], 'no train or training in it, but nothing'),
        (['data.root={images}/train'], 'no train or training in it, but blue, green, red'),
        (['data.root={hollow}'], 'no image in class folders of'),
        (['data.format=wds/', 'data.root={empty}'], 'data.format=wds/'),
        (['data.format=nonsense/x'], 'data.format=nonsense/x'),
        (['data.root={images}', 'model.num_classes=2'], 'model.num_classes=2, and the data names 3 classes'),
        (['data.augment.rotate=5'], 'data.augment.rotate needs data.augment.backend=albumentations'),
        (
            ['data.augment.backend=albumentations', 'data.augment.auto_augment=rand-m9'],
            'data.augment.auto_augment needs data.augment.backend=timm',
        ),
        (['data.batch_size=7', 'data.augment.mixup=1'], 'data.batch_size=7: Mixup and CutMix pair images'),
    ],
)
def test_data_that_cannot_be_used_is_told_in_one_line(settings, message, images, recipe, tmp_path, refused):
    (tmp_path / 'empty').mkdir()
    for split in ('train', 'val'):
        (tmp_path / 'hollow' / split / 'red').mkdir(parents=True)
    places = {'empty': tmp_path / 'empty', 'hollow': tmp_path / 'hollow', 'images': images}
    settings = [setting.format(**places) for setting in settings]
    assert message in refused('train', recipe, f'output={tmp_path / "run"}', *settings)
    assert not (tmp_path / 'run').exists()


def test_a_dataset_of_torchvision_is_read_in_colour(tmp_path: Path):
    """Files as MNIST has them: images of one channel, four of them."""
    raw = tmp_path / 'MNIST' / 'raw'
    raw.mkdir(parents=True)
    pixels = np.arange(4 * 28 * 28, dtype=np.uint8)
    for name in ('train', 't10k'):
        header = b''.join(number.to_bytes(4, 'big') for number in (0x803, 4, 28, 28))
        (raw / f'{name}-images-idx3-ubyte').write_bytes(header + pixels.tobytes())
        labels = (0x801).to_bytes(4, 'big') + (4).to_bytes(4, 'big') + bytes([3, 1, 4, 1])
        (raw / f'{name}-labels-idx1-ubyte').write_bytes(labels)
    config = DataConfig(root=str(tmp_path), format='torch/mnist', batch_size=4, workers=0)
    samples = loading.open_dataset(config, 'validation')
    assert len(samples.classes) == 10
    images, labels, bad = next(
        iter(loading.eval_loader(config, samples, loading.Labelled(eval_transform(LOOK), 10), 0, 1))
    )
    assert images.shape == (4, 3, 32, 32) and labels.tolist() == [3, 1, 4, 1] and not bad


def test_folders_of_torchvision_are_decoded_like_ours(images: Path):
    wide = images / 'val' / 'red' / '00.png'
    Image.fromarray(np.full((8, 8), 32896, np.uint16)).save(wide)
    (images / 'val' / 'red' / '01.png').write_bytes(b'')
    config = DataConfig(root=str(images), format='torch/image_folder', batch_size=24, workers=0)
    samples = loading.open_dataset(config, 'validation')
    assert samples.classes == ['blue', 'green', 'red']
    pixels, labels, problems = next(
        iter(loading.eval_loader(config, samples, loading.Labelled(eval_transform(LOOK), 3), 0, 1))
    )
    assert problems == [(str(images / 'val' / 'red' / '01.png'), 'not an image in a format that can be read')]
    assert labels.tolist() == [0] * 8 + [1] * 8 + [2] * 7
    assert torch.allclose(pixels[16], torch.tensor(2 * 128 / 255 - 1), atol=1e-6)


SPAWNED = """
import multiprocessing, sys
import torch
from attnzoo.train.data import loading
from attnzoo.train.config import AugmentConfig, DataConfig
from attnzoo.train.data.transforms import train_transform

LOOK = {'input_size': (3, 16, 16), 'interpolation': 'bicubic', 'mean': (0.5,) * 3, 'std': (0.5,) * 3}

def batches(config, augment, workers):
    samples = loading.open_dataset(config, config.train_split)
    config = DataConfig(batch_size=12, workers=workers)
    loader = loading.TrainLoader(config, samples, loading.Labelled(train_transform(augment, LOOK), 3), 0, 1, 0, 1)
    return [images for epoch in (0, 1) for images, _, _ in loader.epoch(epoch, 0)]

if __name__ == '__main__':
    multiprocessing.set_start_method('spawn')
    root, shard = sys.argv[1:]
    for config, augment in (
        (DataConfig(root=root), AugmentConfig(backend='albumentations', rotate=20, erase=0.5)),
        (DataConfig(format='wds/', train_split=f'pipe:cat {shard}|24'), AugmentConfig(auto_augment='rand-m9-mstd0.5')),
    ):
        one, other = batches(config, augment, 0), batches(config, augment, 1)
        assert len(one) >= 4 and all(map(torch.equal, one, other)), config
        print(config.format, len(one))
"""


def test_workers_may_be_spawned(images: Path, tmp_path: Path, environment: dict[str, str]):
    """As on macOS, on Windows and in Python 3.14: what a worker needs comes through a pickle, and changes nothing."""
    shard = tmp_path / 'shard.tar'
    with tarfile.open(shard, 'w') as tar:
        for index, path in enumerate(sorted(images.glob('train/*/*.png'))[::3]):
            tar.add(path, f'{index}.png')
            label = tmp_path / f'{index}.cls'
            label.write_text(str(index % 3))
            tar.add(label, label.name)
    script = tmp_path / 'spawned.py'
    script.write_text(SPAWNED)
    command = [sys.executable, script, images, shard]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == ['auto 12', 'wds/ 4']


def test_bad_images_are_counted_over_all_processes(images: Path, recipe: Path, tmp_path: Path, launch):
    """Ten of them, which two processes meet one by one, with a limit of seven: both stop, and one says so."""
    for path in sorted(images.glob('train/*/*.png'))[::7][:10]:
        path.write_bytes(b'this is no image')
    settings = (f'data.root={images}', f'output={tmp_path / "run"}', 'device=cpu', 'data.batch_size=4')
    process = launch(2, 'train', recipe, *settings, 'data.max_bad_images=7')
    out, err = process.communicate(timeout=300)
    assert process.returncode != 0
    told = [line for line in out.splitlines() if line.startswith('cannot read image train/')]
    assert len({line.split()[3] for line in told}) == len(told) >= 8
    assert err.count('images cannot be read, more than data.max_bad_images=7; the last is train/') == 1
    assert 'Traceback' not in err.split('torch/distributed')[0], err
