"""Shards and tables, read in any order or as they come: each sample once, on one process, by any workers."""

import dataclasses
import io
import json
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from zlib import crc32

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from attnzoo.train.config import AugmentConfig, DataConfig
from attnzoo.train.data import loading
from attnzoo.train.data.samples import Stream
from attnzoo.train.data.shards import SHUFFLED_TOGETHER, Shards
from attnzoo.train.data.transforms import eval_transform, train_transform
from attnzoo.train.errors import UserError

LOOK = {
    'input_size': (3, 16, 16),
    'interpolation': 'bicubic',
    'mean': (0.5, 0.5, 0.5),
    'std': (0.5, 0.5, 0.5),
    'crop_pct': 1.0,
    'crop_mode': 'center',
}


def encode(label: int, rng: np.random.Generator) -> bytes:
    pixels = rng.normal(60, 10, (16, 16, 3))
    pixels[..., label] += 120
    image = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(image, 'png')
    return image.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    with tarfile.open(path, 'w') as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Four tar files of 12 labelled images, as webdataset keeps them; the last one is for validation."""
    rng = np.random.default_rng(0)
    root = tmp_path / 'shards'
    root.mkdir()
    for shard in range(4):
        members = []
        for index in range(12):
            key, label = f'{shard}{index:03}', index % 3
            members += [(f'{key}.png', encode(label, rng)), (f'{key}.cls', str(label).encode())]
        write_tar(root / f'digits-{shard}.tar', members)
    return root


def on_disk(shards: Path, **settings) -> DataConfig:
    settings = {
        'train_split': 'digits-{0..2}.tar|36',
        'val_split': 'digits-3.tar',
        'batch_size': 4,
        'workers': 0,
    } | settings
    return DataConfig(root=str(shards), format='wds/', **settings)


def piped(shards: Path, **settings) -> DataConfig:
    """The same shards through a command, as remote ones come: from the first byte to the last."""
    config = on_disk(shards, **settings)
    splits = {name: f'pipe:cat {shards}/{getattr(config, name)}' for name in ('train_split', 'val_split')}
    return dataclasses.replace(config, root='', **splits)


def loader(config: DataConfig, accumulate: int = 1, rank: int = 0, processes: int = 1) -> loading.TrainLoader:
    samples = loading.open_dataset(config, config.train_split)
    transform = train_transform(config.augment, LOOK)
    return loading.TrainLoader(config, samples, loading.Labelled(transform, 3), 0, accumulate, rank, processes)


def same(one: list[loading.Batch], other: list[loading.Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(one, other, strict=True)
    )


@pytest.fixture(params=[on_disk, piped])
def opened(request: pytest.FixtureRequest) -> Callable[..., DataConfig]:
    return request.param


def test_shards_on_a_disk_are_read_in_any_order_and_others_are_a_stream(shards: Path):
    split = 'digits-{0..2}.tar|36'
    assert isinstance(loading.open_dataset(on_disk(shards), split), Shards)
    config = piped(shards)
    assert isinstance(loading.open_dataset(config, config.train_split), Stream)


@pytest.mark.parametrize('processes', [1, 2, 3, 5])
def test_an_epoch_has_every_sample_once_on_one_process(processes: int, opened, shards: Path):
    """Three shards of 12 on up to five processes. What does not fill a batch of all processes is left for once."""
    config = opened(shards, batch_size=2)
    epochs = []
    for epoch in (0, 1):
        shares = [loader(config, rank=rank, processes=processes) for rank in range(processes)]
        named = []
        for share in shares:
            share.order.epoch = epoch
            named.append([share.loader.dataset.samples.name(item) for _, _, item in share.order])
        assert {len(names) for names in named} == {36 // (2 * processes) * 2}
        assert max(Counter(name for names in named for name in names).values()) == 1
        epochs.append(named)
    assert epochs[0] != epochs[1]
    if processes == 3:
        everything = {f'digits-{shard}.tar/{shard}{index:03}' for shard in range(3) for index in range(12)}
        assert {name for names in epochs[0] for name in names} == everything


@pytest.mark.parametrize('processes', [1, 2, 3, 5])
def test_one_shard_scores_every_sample_once(processes: int, opened, shards: Path):
    config = opened(shards, batch_size=5)
    samples = loading.open_dataset(config, config.val_split)
    shares = [
        loading.eval_loader(config, samples, loading.Labelled(eval_transform(LOOK), 3), rank, processes)
        for rank in range(processes)
    ]
    labels = torch.cat([labels for share in shares for _, labels, _ in share])
    assert labels.sort().values.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_neither_workers_nor_a_stop_change_the_batches(opened, shards: Path):
    config = opened(shards, augment=AugmentConfig(auto_augment='rand-m9-mstd0.5-inc1', erase=0.5))
    for rank in (0, 1):
        whole = list(loader(config, rank=rank, processes=2).epoch(1, 0))
        assert len(whole) == loader(config, processes=2).batches == 4
        with_workers = loader(dataclasses.replace(config, workers=2), rank=rank, processes=2)
        assert same(whole, list(with_workers.epoch(1, 0)))
        assert same(whole[2:], list(with_workers.epoch(1, 2)))
        assert not same(whole, list(with_workers.epoch(2, 0)))


def test_an_epoch_is_whole_steps_of_what_the_stream_has(shards: Path):
    """What a split announces is what the schedule is made for; what comes is what is trained on."""
    for announced, planned, seen in ((36, 8, 8), (20, 4, 4), (100, 24, 8)):
        for processes in (1, 2):
            config = piped(shards, train_split=f'digits-{{0..2}}.tar|{announced}', batch_size=4 // processes)
            for rank in range(processes):
                source = loader(config, accumulate=4, rank=rank, processes=processes)
                assert source.batches == planned
                assert len(list(source.epoch(0, 0))) == seen
                assert len(list(source.epoch(0, 4))) == seen - 4
    with pytest.raises(UserError, match='the stream ends after 36 samples, too few for one step of 48'):
        list(loader(piped(shards, train_split='digits-{0..2}.tar|100', batch_size=12), accumulate=4).epoch(0, 0))
    with pytest.raises(UserError, match=r'this stream does not say how many samples it has; .*\|NUMBER'):
        loader(piped(shards, train_split='digits-{0..2}.tar'))
    assert loader(on_disk(shards, train_split='digits-{0..2}.tar')).batches == 9  # counted


def test_more_shards_than_are_shuffled_together_stay_near_their_place(tmp_path: Path):
    """Reading stays in the order of the disk, as far as a window of samples is, and each sample comes once."""
    samples = object.__new__(Shards)
    count, size = 40, 1000
    samples.places = [f'{index}.tar' for index in range(count)]
    samples.starts = np.arange(count + 1) * size
    samples.labels = np.zeros(count * size, dtype=np.int64)
    order = samples.order(np.random.default_rng(0))
    assert np.array_equal(np.sort(order), np.arange(count * size))
    at_once = [len(set(order[start : start + 100] // size)) for start in range(0, count * size, 100)]
    assert max(at_once) <= SHUFFLED_TOGETHER // size + 3 and np.median(at_once) >= 8
    assert not np.array_equal(order, samples.order(np.random.default_rng(1)))


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """One shard with a sample of every kind that goes wrong, and two that are well."""
    rng = np.random.default_rng(0)
    good = encode(1, rng)
    root = tmp_path / 'odd'
    root.mkdir()
    members = [
        *(('a.PNG', good), ('a.cls', b'1\n'), ('a.txt', b'upper case')),
        *(('cut.png', good[:200]), ('cut.cls', b'1')),
        *(('unlabelled.png', good), ('unlabelled.txt', b'')),
        *(('imageless.cls', b'1'), ('imageless.txt', b'')),
        *(('word.png', good), ('word.cls', b'cat')),
        *(('large.png', good), ('large.cls', b'3')),
        *(('__meta__/x.png', good), ('._hidden.png', good)),
        *(('folder/b.jpeg', good), ('folder/b.cls', b'2')),
    ]
    write_tar(root / 'odd-0.tar', members)
    return root


PROBLEMS = {
    'odd-0.tar/cut': 'truncated',
    'odd-0.tar/unlabelled': 'no label (cls) beside its png, txt',
    'odd-0.tar/imageless': 'no image (jpg, jpeg, png, webp) beside its cls, txt',
    'odd-0.tar/word': "its label cannot be read: invalid literal for int() with base 10: b'cat'",
    'odd-0.tar/large': 'its label is 3, expected a number from 0 to 2',
}


def test_samples_that_cannot_be_read_are_named_by_shard_and_key(opened, odd: Path):
    config = opened(odd, train_split='odd-0.tar|7', val_split='odd-0.tar', batch_size=7)
    samples = loading.open_dataset(config, config.val_split)
    told: list[str] = []
    bad = loading.BadImages(limit=5, known=[], tell=told.append)
    for _ in range(2):
        for images, labels, problems in loading.eval_loader(
            config, samples, loading.Labelled(eval_transform(LOOK), 3), 0, 1
        ):
            assert len(images) == 2 and labels.tolist() == [1, 2]
            bad.add(problems)
            assert {name: reason for name, reason in problems if PROBLEMS[name] not in reason} == {}
        bad.share()
    assert bad.names == set(PROBLEMS) and len(told) == 5
    for images, labels, problems in loader(config).epoch(0, 0):
        assert len(images) == 7 and set(labels.tolist()) == {1, 2} and len(problems) == 5


def test_a_shard_that_was_cut_off_or_is_not_there_is_named_before_training(shards: Path):
    path = shards / 'digits-1.tar'
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(UserError, match=r'shard .*digits-1\.tar is damaged or was cut off in a copy: '):
        loading.open_dataset(on_disk(shards), 'digits-{0..2}.tar|36')
    with pytest.raises(UserError, match=r'shard .*digits-9\.tar: No such file or directory'):
        loading.open_dataset(on_disk(shards), 'digits-9.tar')
    config = piped(shards)
    with pytest.raises(UserError, match=r'digits-0\.tar \.\.\.: '):
        list(loader(config).epoch(0, 0))


def test_splits_and_labels_of_an_info_file(shards: Path, tmp_path: Path):
    """As timm's own ImageNet shards have them: splits by name, and a second set of labels in the .json."""
    rng = np.random.default_rng(0)
    members = []
    for index in range(6):
        facts = {'label': index % 3, 'few': index % 3 if index else -1}
        members += [(f'{index}.jpg', encode(1, rng)), (f'{index}.json', json.dumps(facts).encode())]
    write_tar(shards / 'with-json.tar', members)
    part = {'name': 'part', 'num_samples': 5, 'filenames': ['with-json.tar'], 'shard_lengths': [6], 'alt_label': 'few'}
    digits = {
        'name': 'train',
        'num_samples': 24,
        'filenames': ['digits-0.tar', 'digits-1.tar'],
        'shard_lengths': [12, 12],
    }
    (shards / '_info.json').write_text(json.dumps({'splits': {'part': part, 'train': digits}}))
    config = on_disk(shards)
    assert len(loading.open_dataset(config, 'train')) == 24
    few = loading.open_dataset(config, 'part')
    assert [few[index][1] for index in range(len(few))] == [1, 2, 0, 1, 2]  # a negative label is none
    every = loading.open_dataset(dataclasses.replace(config, target_key='label'), 'with-json.tar|6')
    assert [every[index][1] for index in range(len(every))] == [0, 1, 2, 0, 1, 2]
    with pytest.raises(
        UserError, match=r'no split nothing in .*_info.json; without that file name the shards themselves'
    ):
        loading.open_dataset(config, 'nothing')


def test_webdataset_shards_train_and_score(opened, shards: Path, recipe: Path, tmp_path: Path, attnzoo, refused):
    run, config = tmp_path / 'run', opened(shards, val_split='digits-3.tar|12')
    arguments = (
        *('train', recipe, f'output={run}', 'data.format=wds/', f'data.root={shards}', 'data.batch_size=4'),
        *(f'data.train_split={config.train_split}', f'data.val_split={config.val_split}', 'train.epochs=3'),
    )
    assert 'set model.num_classes' in refused(*arguments)
    result = attnzoo(*arguments, 'model.num_classes=3')
    assert result.code == 0, result
    summary = json.loads((run / 'summary.json').read_text())
    assert summary['images'] == 12 and summary['top1'] > 60
    scored = attnzoo('eval', run)
    assert scored.code == 0 and f'{summary["top1"]:.2f} %' in scored.out, scored


def test_a_dataset_of_hugging_face_trains_and_names_its_classes(images: Path, recipe: Path, tmp_path: Path, attnzoo):
    """A folder, which the library opens as it opens a name of the hub."""
    run = tmp_path / 'run'
    result = attnzoo('train', recipe, f'output={run}', f'data.format=hfds/{images}', f'data.root={tmp_path / "cache"}')
    assert result.code == 0, result
    assert json.loads((run / 'summary.json').read_text())['images'] == 24
    scored = attnzoo('predict', run, images / 'val' / 'red' / '00.png')
    assert {'red', 'green', 'blue'} <= set(scored.out.split()), scored


def test_a_stream_of_hugging_face_is_shared_like_shards(images: Path, tmp_path: Path):
    config = DataConfig(
        format=f'hfids/{images}', root=str(tmp_path / 'cache'), train_split='train|72', batch_size=8, workers=0
    )
    whole = [batch for rank in range(3) for batch in loader(config, rank=rank, processes=3).epoch(0, 0)]
    assert len(whole) == 9 and torch.cat([labels for _, labels, _ in whole]).bincount().tolist() == [24] * 3
    one = loader(dataclasses.replace(config, workers=1), rank=1, processes=3)
    assert one.loader.dataset.samples.classes == ['blue', 'green', 'red']
    assert same(whole[4:6], list(one.epoch(0, 1)))
    with pytest.raises(UserError, match='does not say how many samples'):
        loader(dataclasses.replace(config, train_split='train'))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A data set as the hub has MNIST: parquet files of splits train and test, images as bytes. Rows 3 to 5 are bad."""
    rng = np.random.default_rng(0)
    root = tmp_path / 'table'
    root.mkdir()
    names = datasets.ClassLabel(names=['zero', 'one', 'two'])
    features = datasets.Features({'picture': datasets.Image(), 'digit': names, 'note': datasets.Value('string')})
    for split in ('train', 'test'):
        images = [{'bytes': encode(index % 3, rng), 'path': None} for index in range(12)]
        images[3]['bytes'], images[4] = b'no image', None
        rows = {'picture': images, 'digit': [index % 3 for index in range(12)], 'note': [''] * 12}
        rows['digit'][5] = -1  # as test splits without labels have
        datasets.Dataset.from_dict(rows, features=features).to_parquet(root / f'{split}-00000-of-00001.parquet')
    return root


@pytest.mark.parametrize('kind', ['hfds', 'hfids'])
def test_rows_that_cannot_be_read_are_named(kind: str, table: Path, tmp_path: Path):
    """The split for validation is called test, the columns neither image nor label: there is no doubt what they are."""
    config = DataConfig(format=f'{kind}/{table}', root=str(tmp_path / 'cache'), batch_size=12, workers=0)
    samples = loading.open_dataset(config, 'validation', classes=['zero', 'one', 'two'])
    assert samples.remarks == [f'data.format={kind}/{table}: no split validation in it; test stands in for it']
    _, labels, problems = next(
        iter(loading.eval_loader(config, samples, loading.Labelled(eval_transform(LOOK), 3), 0, 1))
    )
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert [reason for _, reason in problems] == [
        'not an image in a format that can be read',
        'the row has no image',
        'its label is -1, expected a number from 0 to 2',
    ]
    names = [name for name, _ in problems]
    if kind == 'hfds':
        assert names == ['test row 3', 'test row 4', 'test row 5']
    else:
        assert names[0] == f'test: row with the image of CRC-32 {crc32(b"no image"):08x} and label 0'
        assert len(set(names)) == 3


def test_classes_in_another_order_are_numbered_as_in_training(table: Path, tmp_path: Path):
    """And a label that is no number of a class stays none."""
    config = DataConfig(format=f'hfds/{table}', root=str(tmp_path / 'cache'), workers=0)
    samples = loading.open_dataset(config, 'validation', classes=['two', 'three', 'one', 'zero'])
    assert samples.classes == ['two', 'three', 'one', 'zero']
    _, labels, problems = next(
        iter(loading.eval_loader(config, samples, loading.Labelled(eval_transform(LOOK), 4), 0, 1))
    )
    assert labels.tolist() == [3, 2, 0, 3, 2, 0, 3, 2, 0]
    assert problems[-1] == ('test row 5', 'its label is -1, expected a number from 0 to 2')


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'val_split': 'holdout'}, 'no holdout in it, but test, train; data.val_split=NAME takes one'),
        ({'input_key': 'img'}, 'data.input_key=img: the dataset has no such column, but picture, digit, note'),
        ({'target_key': 'y'}, 'data.target_key=y: the dataset has no such column, but picture, digit, note'),
        ({'target_key': 'note'}, 'data.target_key=note holds text, expected numbers of classes'),
    ],
)
def test_splits_and_columns_that_are_not_there(settings, message, table: Path, tmp_path: Path):
    config = DataConfig(format=f'hfds/{table}', root=str(tmp_path / 'cache'), **settings)
    with pytest.raises(UserError, match=message):
        loading.open_dataset(config, config.val_split)


def test_a_part_of_a_split(table: Path, tmp_path: Path):
    config = DataConfig(format=f'hfds/{table}', root=str(tmp_path / 'cache'))
    assert len(loading.open_dataset(config, 'train[:50%]')) == 6
    assert len(loading.open_dataset(config, 'validation[2:5]')) == 3


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, 'datasets', None)  # importing it now fails
    monkeypatch.delitem(sys.modules, 'attnzoo.train.data.hub', raising=False)
    with pytest.raises(UserError, match="needs the package 'datasets': pip install datasets"):
        loading.open_dataset(DataConfig(format='hfds/nobody/nothing'), 'train')


def test_one_shard_trains_and_scores_on_three_processes(shards: Path, recipe: Path, tmp_path: Path, launch):
    """12 samples to train on, 12 to score on, each through a pipe: fewer shards than processes, or than workers."""
    run, config = tmp_path / 'run', piped(shards, train_split='digits-0.tar|12', val_split='digits-3.tar')
    process = launch(
        3,
        *('train', recipe, f'output={run}', 'device=cpu', 'data.format=wds/', 'model.num_classes=3', 'train.epochs=1'),
        *(f'data.train_split={config.train_split}', f'data.val_split={config.val_split}', 'data.batch_size=2'),
        'data.workers=1',
    )
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, (out, err)
    assert json.loads((run / 'metrics.jsonl').read_text())['update'] == 2
    assert json.loads((run / 'summary.json').read_text())['images'] == 12
