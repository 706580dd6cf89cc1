"""Annotations in COCO's format: what is read, what is left out and said, and what is refused in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from attnzoo.train.detection import masks
from attnzoo.train.detection.coco import Coco


def edit_first(**changes):
    return lambda content: content['annotations'][0].update(changes)


def test_a_split_is_read(drawn: Path):
    samples = Coco(drawn, 'train', masks=True)
    assert len(samples) == 9 and samples.classes == list('0123456789') and samples.remarks == []
    path, (item, picture, objects) = samples[2]
    assert (path, item) == (str(drawn / 'train' / '000003.png'), 2) and samples.name(2) == 'train/000003.png'
    content = json.loads((drawn / 'annotations' / 'instances_train.json').read_text())
    own = [one for one in content['annotations'] if one['image_id'] == picture.id]
    corners = [[x, y, x + width, y + height] for x, y, width, height in (one['bbox'] for one in own)]
    assert objects.boxes == corners and objects.labels == [one['category_id'] for one in own]
    assert len(objects.masks) == len(own)


@pytest.mark.parametrize(
    ('annotations', 'images'),
    [
        ('annotations/instances_train2017.json', 'train2017'),
        ('annotations/train.json', 'images/train'),
        ('train/_annotations.coco.json', 'train'),
        ('train.json', 'images'),
        ('training.json', '.'),
    ],
)
def test_places_of_other_sets_are_found(annotations, images, drawn, tmp_path):
    for path in (tmp_path / annotations, tmp_path / images / 'x'):
        path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(drawn / 'annotations' / 'instances_train.json', tmp_path / annotations)
    shutil.copy(drawn / 'train' / '000001.png', tmp_path / images / '000001.png')
    samples = Coco(tmp_path, 'train', masks=False)
    assert Path(samples[0][0]).is_file() and samples.file == tmp_path / annotations


def test_ids_with_holes_are_labels_without(canvases, drawn):
    """As COCO's own, whose 80 categories have ids up to 90."""

    def spread(content):
        for one in (*content['categories'], *content['annotations']):
            key = 'id' if 'name' in one else 'category_id'
            one[key] = one[key] * 7 + 2
        content['categories'].reverse()

    canvases.change(spread)
    samples, before = Coco(canvases.root, 'train', masks=False), Coco(drawn, 'train', masks=False)
    assert samples.category_ids == [number * 7 + 2 for number in range(1, 11)] and samples.classes == before.classes
    assert [one.labels for one in samples.objects] == [one.labels for one in before.objects]
    # The held-out split has other ids for the same names.
    held_out = Coco(canvases.root, 'validation', masks=False, categories=samples.classes)
    assert held_out.category_ids == list(range(1, 11)) and held_out.remarks == []


def test_crowds_are_scored_by_and_not_learnt(canvases):
    counts = np.zeros((128, 128), np.uint8)
    counts[20:60, 20:60] = 1
    crowd = {'iscrowd': 1, 'segmentation': masks.encode(counts), 'bbox': [20, 20, 40, 40]}
    canvases.change(edit_first(**crowd))
    samples = Coco(canvases.root, 'train', masks=True)
    assert samples.remarks == []
    truth = samples.truth([0])['annotations']
    assert truth[0]['iscrowd'] == 1 and len(samples.objects[0].boxes) == len(truth) - 1
    assert [20, 20, 60, 60] not in samples.objects[0].boxes


@pytest.mark.parametrize(
    ('changes', 'masked', 'reason'),
    [
        ({'bbox': [10, 10, 0, 5]}, False, 'no area: 10, 10, 0, 5'),
        ({'bbox': [10, 10, 5, -5]}, False, 'no area: 10, 10, 5, -5'),
        ({'bbox': [130, 10, 5, 5]}, False, 'outside: 130, 10, 5, 5 in 128 x 128'),
        ({'bbox': [float('nan'), 1, 2, 3]}, False, 'its bbox is nan, 1, 2, 3'),
        ({'bbox': [1, 2, 3]}, False, 'its bbox is [1, 2, 3]'),
        ({'bbox': None}, False, 'its bbox is None'),
        ({'segmentation': {'size': [64, 64], 'counts': 'a'}}, True, 'its mask is of [64, 64], the image of [128, 128]'),
        ({'segmentation': []}, True, 'it has no mask'),
        ({'segmentation': None}, True, 'it has no mask'),
        ({'segmentation': [[1, 2, 3, 4]]}, True, 'its mask has a polygon of fewer than three points'),
        ({'segmentation': {'size': [128, 128], 'counts': ''}}, True, 'its mask is empty'),
    ],
)
def test_bad_objects_are_counted_named_and_left_out_or_refused(changes, masked, reason, canvases, tiny, refused):
    path = canvases.change(edit_first(**changes))
    samples = Coco(canvases.root, 'train', masks=masked)
    whole = Coco(canvases.root, 'validation', masks=masked)
    assert whole.remarks == [] and len(samples.remarks) == 1
    start = f'{path}: 1 objects left out: no area, outside, or a mask that does not fit: annotation 1 of 000001.png ('
    assert samples.remarks[0].startswith(start) and reason in samples.remarks[0]
    count = len(json.loads(path.read_text())['annotations'])
    assert len(samples.annotations) == count - 1 == sum(len(one.boxes) for one in samples.objects)
    if not masked:
        assert Coco(canvases.root, 'train', masks=False).remarks == samples.remarks
    detector = 'mask_rcnn' if masked else 'faster_rcnn'
    run = (f'data.root={canvases.root}', f'output={canvases.root}/run', 'detection.bad_boxes=error')
    line = refused('train', tiny(detector), *run)
    assert line.startswith(f'{path}: 1 objects are bad: annotation 1 of 000001.png') and reason in line
    assert line.endswith('detection.bad_boxes=drop goes on')


def test_a_box_over_the_edge_is_cut_and_named(canvases):
    path = canvases.change(edit_first(bbox=[-5, 100, 20, 60]))
    samples = Coco(canvases.root, 'train', masks=False)
    assert [0.0, 100.0, 15.0, 128.0] in samples.objects[0].boxes
    what = 'annotation 1 of 000001.png (-5, 100, 20, 60 in 128 x 128)'
    assert samples.remarks == [f'{path}: 1 objects cut at the edge of their image: {what}']
    # As annotators and rounding leave them.
    canvases.change(edit_first(bbox=[-0.4, 100, 20, 28.7]))
    assert Coco(canvases.root, 'train', masks=False).remarks == []


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (remove, 'no train or training in it, but validation'),
        (lambda path: path.write_bytes(b''), '{path}: an empty file, expected annotations in COCO format'),
        (lambda path: path.write_text('{"images": ['), '{path}: no JSON: Expecting value'),
        (lambda path: path.write_bytes(b'\xff\xfe\x00bad'), '{path}: no JSON: '),
        (lambda path: path.write_text('[1, 2]'), '{path}: no list of images, annotations, categories in it'),
        (lambda path: path.write_text('{"images": [], "annotations": []}'), '{path}: no list of categories in it'),
        (
            lambda path: path.write_text('{"images": [], "annotations": [], "categories": []}'),
            '{path}: no images in it',
        ),
    ],
)
def test_a_file_that_holds_no_annotations_is_one_line(spoil, message, canvases, tiny, refused, tmp_path):
    path = canvases.root / 'annotations' / 'instances_train.json'
    spoil(path)
    line = refused('train', tiny(), f'data.root={canvases.root}', f'output={tmp_path}/run')
    assert message.format(path=path) in line
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (edit_first(category_id=77), 'annotation 1 has category_id 77, which is not in the file'),
        (edit_first(image_id=77), 'annotation 1 is of the image 77, which is not in the file'),
        (lambda content: content['annotations'].insert(0, 3), 'annotation number 0 is 3, expected an object with'),
        (lambda content: content['images'].append({'id': 1}), "the image {{'id': 1}} has no id, file_name, width and"),
        (lambda content: content['images'].append(content['images'][0]), 'several images have the id 1'),
        (lambda content: content['categories'].append({'id': 1, 'name': 'x'}), 'several categories have the id 1'),
        (lambda content: content['categories'].append({'id': 99, 'name': '3'}), "several categories have the name '3'"),
        (lambda content: content['categories'].append({}), "a category has no id and name: 'id'"),
        (lambda content: content['categories'].clear(), 'no categories in it'),
        (lambda content: content['annotations'].clear(), 'no object in it that a detector could learn or be scored by'),
        (lambda content: content['images'][0].update(width=0), '000001.png is 0 x 128 pixels'),
    ],
)
def test_annotations_that_contradict_themselves_are_one_line(change, message, canvases, tiny, refused, tmp_path):
    path = canvases.change(change)
    line = refused('train', tiny(), f'data.root={canvases.root}', f'output={tmp_path}/run')
    assert line.startswith(f'{path}: {message.format()}')


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (['data.root={tmp}/nowhere'], 'data.root={tmp}/nowhere: no such folder'),
        (
            ['data.root={tmp}/empty'],
            'data.root={tmp}/empty: no annotations in it, expected {tmp}/empty/annotations/inst',
        ),
        (['data.format=coco'], 'data.root is empty; data.format=coco needs data.root=PATH'),
        (
            ['data.format=folder', 'data.root={tmp}'],
            'data.format=folder: expected auto, digits, coco for task=detection',
        ),
        (['model.num_classes=3'], 'model.num_classes=3, and the data has 10 categories'),
        (['detection.max_size=32'], 'detection.max_size=32 is below detection.min_size=64'),
        (['detection.levels=[8, 16]'], 'detection.levels=[8, 16]: biformer_tiny has no map of stride 16, but of 4, 8'),
        (
            ['detection.anchor_sizes=[16]'],
            'detection.anchor_sizes=[16.0]: expected 2, one for each level (strides 4, 8)',
        ),
        (['detection.anchor_sizes=[]'], 'detection.anchor_sizes: got [], expected [float, ...], above 0, or null'),
        (['model.kwargs.out_indices=[1]'], 'model.kwargs.out_indices: detectors choose it; detection.levels names'),
        (['detection.channels=40', 'detection.detector=fcos'], 'detection.channels=40: fcos needs a multiple of 32'),
        (['detection.detector=yolo'], "detection.detector: got 'yolo', expected one of retinanet, fcos, faster_rcnn"),
        (['data.augment.rotate=5'], 'data.augment.rotate needs data.augment.backend=albumentations'),
        (['train.smoothing=0.2'], 'train.smoothing: a setting of task=classification, and this is task=detection'),
        (['detection.bad_box=drop'], "unknown key 'detection.bad_box'; did you mean 'detection.bad_boxes'?"),
    ],
)
def test_settings_that_do_not_go_are_one_line(settings, message, canvases, tiny, refused, tmp_path):
    (tmp_path / 'empty').mkdir()
    given = [setting.format(tmp=tmp_path) for setting in settings]
    root = [] if any(key.startswith(('data.root', 'data.format=coco')) for key in given) else [canvases.root]
    line = refused('train', tiny(), f'output={tmp_path}/run', *(f'data.root={path}' for path in root), *given)
    assert line.startswith(message.format(tmp=tmp_path))
