"""Detectors by the command line, from training to prediction: what they leave, and how they go on."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from attnzoo.train import config, models
from attnzoo.train.checkpoint import load_state
from attnzoo.train.data import loading
from attnzoo.train.detection import task

from .conftest import DETECTORS, Canvases

SETTINGS = ('data.augment.backend=timm', 'detection.scales=[48, 64]', 'detection.max_size=80', 'optim.layer_decay=0.8')
# Everything that draws random numbers, and everything that a step carries over to the next.
EVERYTHING = (
    *('train.epochs=3', 'train.ema=0.9', 'train.grad_accum=2', 'data.batch_size=2', 'train.grad_checkpointing=true'),
    *('detection.jitter=[0.6, 1.4]', 'schedule.warmup_epochs=0.5'),
)


def lines_of(run: Path) -> list[dict]:
    path = run / 'metrics.jsonl'
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def summary_of(run: Path) -> dict:
    return json.loads((run / 'summary.json').read_text())


@pytest.mark.parametrize('name', DETECTORS)
def test_a_detector_trains_is_scored_and_predicts(name, drawn, tiny, tmp_path, attnzoo):
    """Far too short to find anything: what is left, and that all verbs say the same of it."""
    run = tmp_path / 'run'
    result = attnzoo('train', tiny(name), f'data.root={drawn}', f'output={run}', *SETTINGS)
    assert result.code == 0, result
    assert re.search(rf'^{name} on biformer_tiny, [\d.]+ M parameters, 10 classes, images of 64x80: 2 ', result.out)
    names = ['box_ap', 'box_ap50', *(['mask_ap', 'mask_ap50'] if name == 'mask_rcnn' else [])]
    summary, lines = summary_of(run), lines_of(run)
    assert [line['update'] for line in lines] == [2, 4] and lines[0]['train_loss'] > 0
    for key in names:
        assert summary[key] == lines[summary['best_epoch'] - 1][key] and 0 <= summary[key] <= 1
    assert ('mask_ap' in summary) == (name == 'mask_rcnn') and summary['detector'] == name and summary['images'] == 4
    for picture in ('curves.png', 'precision_recall.png', 'detections.png'):
        with Image.open(run / picture) as image:
            assert min(image.size) > 200 and np.asarray(image.convert('L')).std() > 5, picture
    assert config.load(str(run / 'config.yaml')).detection.detector == name

    results = tmp_path / 'results.json'
    (tmp_path / 'drawn').mkdir()
    scored = attnzoo('eval', run, '--json', results, '--draw', tmp_path / 'drawn')
    assert scored.code == 0 and '4 images' in scored.out and f'{summary["box_ap"]:.3f}' in scored.out, scored
    assert len(list((tmp_path / 'drawn').glob('*.png'))) == 4
    written = json.loads(results.read_text())
    annotations = json.loads((drawn / 'annotations' / 'instances_validation.json').read_text())
    assert {one['image_id'] for one in written} <= {image['id'] for image in annotations['images']}
    if name in ('faster_rcnn', 'mask_rcnn', 'rt_detr', 'fcos'):
        assert len(written) == 40 and {'category_id', 'bbox', 'score'} <= written[0].keys()
        assert ('segmentation' in written[0]) == (name == 'mask_rcnn')
    half = attnzoo('eval', run, 'precision=bf16', 'detection.max_detections=3', 'detection.score_threshold=0.01')
    assert half.code == 0, half

    image = drawn / 'validation' / '000002.png'
    predicted = attnzoo('predict', run, image, '--score', 0, '--top', 2)
    assert predicted.code == 0 and predicted.out.splitlines()[0].startswith(str(image)), predicted
    told = attnzoo('predict', run, image, '--json', '-')
    found = json.loads(told.out)
    assert all(one['image_id'] == 2 and one['file_name'] == str(image) for one in found)
    boxes = [one['bbox'] for one in written if one['image_id'] == 2]
    assert [one['bbox'] for one in found] == [pytest.approx(box, abs=2e-3) for box in boxes]
    assert f'{name} on biformer_tiny' in attnzoo('info', run).out


def test_two_seeds_of_the_default_set_have_one_held_out_split(tmp_path, tiny, attnzoo, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr('attnzoo.train.detection.digits.write.__defaults__', (4, 2))
    for seed in (0, 1):
        result = attnzoo('train', tiny(), f'output={tmp_path}/{seed}', f'seed={seed}', 'train.epochs=1')
        assert result.code == 0, result
    validation = [tmp_path / f'attnzoo/digits-on-canvases-1-{seed}' / 'validation/000002.png' for seed in (0, 1)]
    assert validation[0].read_bytes() == validation[1].read_bytes()
    weights = [(tmp_path / str(seed) / 'last.safetensors').read_bytes() for seed in (0, 1)]
    assert weights[0] != weights[1]


def assert_same_end(run: Path, other: Path) -> None:
    """Weights, their average, the optimiser's state and the metrics: equal to the bit."""
    one, two = (load_state(path / 'last.state') for path in (run, other))
    for part in ('model', 'ema'):
        assert all(torch.equal(value, two[part][key]) for key, value in one[part].items())
    for key, state in one['optimizer']['state'].items():
        assert all(torch.equal(value, two['optimizer']['state'][key][name]) for name, value in state.items())
    timed = {'seconds', 'images_per_second'}
    for first, second in zip(lines_of(run), lines_of(other), strict=True):
        assert {key: first[key] for key in first.keys() - timed} == {key: second[key] for key in second.keys() - timed}
    assert (run / 'best.safetensors').read_bytes() == (other / 'best.safetensors').read_bytes()


@pytest.mark.parametrize(
    ('name', 'number', 'augment'),
    [
        ('mask_rcnn', signal.SIGINT, ('data.augment.backend=albumentations', 'data.augment.rotate=10')),
        ('rt_detr', signal.SIGKILL, ()),
    ],
)
def test_a_run_that_stops_ends_with_the_same_bits(
    name, number, augment, drawn, tiny, tmp_path, start, stop, attnzoo, monkeypatch
):
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    command = ('train', str(tiny(name)), f'data.root={drawn}', *EVERYTHING, *augment)
    assert attnzoo(*command, f'output={whole}').code == 0
    stopped = stop(start(*command, f'output={broken}', 'data.workers=1'), number, lambda: len(lines_of(broken)) >= 1)
    assert stopped.code == (130 if number == signal.SIGINT else -number), stopped
    progress = load_state(broken / 'last.state')['progress']
    assert (progress['epoch'], progress['batch']) != (3, 0) and len(lines_of(broken)) < 3, progress
    resumed = attnzoo(*command, f'output={broken}')
    assert resumed.code == 0 and f'going on from {broken}: epoch {progress["epoch"] + 1}' in resumed.out
    assert_same_end(whole, broken)


def test_two_processes_score_every_image_once_and_together(drawn, tiny, tmp_path, launch, attnzoo):
    """Five held-out images for two: the average precision is that of one process, of the same weights."""
    run = tmp_path / 'run'
    settings = (f'data.root={drawn}', 'device=cpu', 'data.batch_size=2', 'data.val_split=train', 'train.epochs=1')
    process = launch(2, 'train', tiny('mask_rcnn'), *settings, f'output={run}')
    out, err = process.communicate(timeout=1200)
    assert process.returncode == 0, (out, err)
    summary = summary_of(run)
    assert summary['images'] == 9 and lines_of(run)[0]['update'] == 2
    results = tmp_path / 'results.json'
    scored = attnzoo('eval', run, '--json', results)
    assert scored.code == 0 and len({one['image_id'] for one in json.loads(results.read_text())}) == 9
    assert f'{summary["box_ap50"]:.3f}' in scored.out and f'{summary["mask_ap"]:.3f}' in scored.out, scored


def test_images_that_cannot_be_read_are_counted_and_the_others_go_on(canvases: Canvases, tiny, tmp_path, attnzoo):
    run = tmp_path / 'run'
    (canvases.root / 'train' / '000001.png').write_bytes(b'no image')
    (canvases.root / 'train' / '000002.png').unlink()
    Image.new('RGB', (40, 50)).save(canvases.root / 'train' / '000003.png')
    (canvases.root / 'validation' / '000001.png').write_bytes(b'')
    settings = (f'data.root={canvases.root}', f'output={run}', 'train.epochs=1', 'data.batch_size=9')
    result = attnzoo('train', tiny('fcos'), *settings)
    assert result.code == 0, result
    for text in (
        'cannot read image train/000001.png: not an image in a format that can be read',
        'cannot read image train/000002.png: No such file or directory',
        'cannot read image train/000003.png: it has 40 x 50 pixels, and 128 x 128 in the file',
        'cannot read image validation/000001.png: ',
    ):
        assert text in result.out
    summary = summary_of(run)
    assert len(summary['bad_images']) == 4 and summary['images'] == 3
    few = attnzoo('train', tiny('fcos'), *settings, 'resume=never', 'data.max_bad_images=2')
    assert few.code == 1 and '3 images cannot be read, more than data.max_bad_images=2' in few.err


def test_categories_that_are_others_are_named(canvases: Canvases, tiny, tmp_path, attnzoo, refused):
    run = tmp_path / 'run'
    command = ('train', tiny('fcos'), f'data.root={canvases.root}', f'output={run}', 'train.epochs=1')

    def without_nought(content):
        """Nine of the ten categories, with other ids."""
        content['categories'] = [{**one, 'id': one['id'] + 20} for one in content['categories'] if one['name'] != '0']
        content['annotations'] = [
            {**one, 'category_id': one['category_id'] + 20} for one in content['annotations'] if one['category_id'] != 1
        ]

    canvases.change(without_nought, 'validation')
    result = attnzoo(*command)
    assert result.code == 0, result  # the classes of training, some of them
    results = tmp_path / 'results.json'
    assert attnzoo('eval', run, '--json', results).code == 0
    assert {one['category_id'] for one in json.loads(results.read_text())} <= set(range(22, 31))

    canvases.change(lambda content: content['categories'][3].update(name='four'), 'validation')
    assert '1 of its 9 categories are none of the 10 of the model (0, 1, 2, ...): four' in refused('eval', run)
    assert ': four' in refused(*command, 'resume=never')
    canvases.change(lambda content: content['categories'][3].update(name='4'), 'validation')
    canvases.change(lambda content: content['categories'][3].update(name='drei'))
    canvases.change(lambda content: content['categories'].pop(), 'train')
    line = refused(*command, 'train.epochs=2')
    assert 'has category_id 10, which is not in the file' in line
    canvases.change(lambda content: content['categories'].append({'id': 10, 'name': '9'}))
    canvases.change(lambda content: content['categories'][2].update(name='drei'), 'validation')
    line = refused(*command, 'train.epochs=2')
    assert f'{run} was begun with other data' in line and '3 is gone and drei is new' in line


def test_a_detector_starts_from_another_of_other_classes_and_from_a_classifier(
    canvases: Canvases, tiny, tmp_path, attnzoo, refused, images, recipe
):
    def others(categories):
        return [{**one, 'name': f'digit {one["name"]}'} for one in categories]

    first, second, third = (tmp_path / name for name in ('first', 'second', 'third'))
    short = (f'data.root={canvases.root}', 'train.epochs=1', 'optim.lr=0', 'schedule.min_lr=0')
    assert attnzoo('train', tiny(), *short, f'output={first}').code == 0
    for split in ('train', 'validation'):
        canvases.change(lambda content: content.update(categories=others(content['categories'])), split)
    result = attnzoo('train', tiny(), *short, f'output={second}', f'model.weights={first}', 'seed=1')
    assert result.code == 0, result
    assert f'starting from {first}/best.safetensors, all but net.roi_heads.box_predictor.cls_score.weight' in result.out
    before, after = (safetensors.torch.load_file(run / 'last.safetensors') for run in (first, second))
    same = {key for key in before if torch.equal(before[key], after[key])}
    assert 'net.rpn.head.cls_logits.weight' in same and 'net.roi_heads.box_head.fc6.weight' in same
    assert 'net.roi_heads.box_predictor.cls_score.weight' not in same

    line = refused('train', recipe, f'data.root={images}', f'output={third}', f'model.weights={first}')
    assert line == f'model.weights={first} is of a detector: task=detection goes on from it'
    classifier = tmp_path / 'classifier'
    assert attnzoo('train', recipe, f'data.root={images}', f'output={classifier}', 'train.epochs=1').code == 0
    result = attnzoo('train', tiny(), *short, f'output={third}', f'model.weights={classifier}')
    assert result.code == 0 and f'starting from {classifier}/best.safetensors: the backbone' in result.out, result
    assert models.task_of(str(classifier)) == 'classification' and models.task_of(str(third)) == 'detection'
    line = refused('eval', classifier, '--json', '-')
    assert line == f'{classifier}: --json and --draw are for detectors'
    assert 'for detectors' in refused('predict', classifier, images / 'val' / 'red' / '00.png', '--draw', tmp_path)


def test_what_eval_and_predict_refuse(drawn, tiny, tmp_path, attnzoo, refused):
    run = tmp_path / 'run'
    assert attnzoo('train', tiny(), f'data.root={drawn}', f'output={run}', 'train.epochs=1').code == 0
    assert refused('eval', run, 'detection.channels=64').startswith('detection.channels: of the settings, eval takes ')
    assert refused('eval', run, '--json', 'no/out.json') == 'no/out.json: no folder no'
    image = drawn / 'validation' / '000001.png'
    assert '--csv out.csv: for classes' in refused('predict', run, image, '--csv', 'out.csv')
    several = attnzoo('predict', run, image, tmp_path / 'none.png', '--score', 0, '--draw', tmp_path / 'drawn')
    assert several.code == 1 and f'cannot read image {tmp_path}/none.png: no such file' in several.err
    assert '1 of 2 images cannot be read' in several.err and f'drew 1 images in {tmp_path}/drawn' in several.out
    with Image.open(tmp_path / 'drawn' / '000001.png') as picture:
        assert max(picture.size) >= 384
    (tmp_path / 'bare').mkdir()
    (run / 'best.safetensors').rename(tmp_path / 'bare' / 'best.safetensors')
    bare = tmp_path / 'bare' / 'best.safetensors'
    assert refused('eval', bare).startswith(f'{bare}: on which images? ')
    assert attnzoo('eval', bare, f'data.root={drawn}', 'data.workers=0').code == 0


def test_predicting_boxes_needs_no_extra(drawn, tiny, tmp_path, attnzoo):
    run = tmp_path / 'run'
    assert attnzoo('train', tiny('fcos'), f'data.root={drawn}', f'output={run}', 'train.epochs=1').code == 0
    code = f"""
import sys
for name in ('accelerate', 'albumentations', 'faster_coco_eval', 'matplotlib', 'omegaconf', 'transformers'):
    sys.modules[name] = None
from attnzoo.__main__ import main
sys.argv = ['attnzoo', 'predict', {str(run)!r}, {str(drawn / 'validation' / '000001.png')!r}, '--score', '0']
main()
"""

    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 11, done


def test_what_is_missing_is_named_with_its_extra(drawn, tiny, tmp_path, attnzoo, refused, monkeypatch):
    run = tmp_path / 'run'
    arguments = (f'data.root={drawn}', f'output={run}', 'train.epochs=1')
    assert attnzoo('train', tiny('rt_detr'), *arguments).code == 0
    image = drawn / 'validation' / '000001.png'
    monkeypatch.delitem(sys.modules, 'attnzoo.train.detection.rt_detr')
    monkeypatch.setitem(sys.modules, 'transformers', None)
    for command in (('train', tiny('rt_detr'), *arguments, 'resume=never'), ('eval', run), ('predict', run, image)):
        assert "transformers, which is not installed: pip install 'attnzoo[detect]'" in refused(*command)


def test_batches_of_a_process_are_lists_and_bad_ones_have_stand_ins(drawn, tiny):
    settings = config.load(str(tiny()), [f'data.root={drawn}', 'data.batch_size=3'])
    samples = task.open_split(settings, 'train', False)
    reader = task.Annotated(task.train_transform(settings.data.augment, settings.detection), False)
    loader = loading.TrainLoader(settings.data, samples, reader, 0, 1, 0, 1)
    [first, *_] = [targets for _, targets, _ in loader.epoch(0, 0)]
    [again] = [targets for _, targets, _ in loader.epoch(0, loader.batches - 1)]
    assert len(first) == len(again) == 3 and {'item', 'boxes', 'labels'} == first[0].keys()
    samples.folder = Path('/nowhere')
    with pytest.raises(loading.UserError, match='not one image of a batch of 3 can be read, such as train/'):
        next(loader.epoch(0, 0))
