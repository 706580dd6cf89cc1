"""mmdet's programs from start to end on handwritten digits: train, save, resume, score, infer; one process and two."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('mmdet', reason="needs mmdet: pip install 'attnzoo[mmdet]'")

import torch
from PIL import Image

from attnzoo.train.detection import digits
from attnzoo.train.mmdet.launcher import packaged

# The backbone and the sizes of the packaged digits_mask_rcnn.yaml, in mmdet's words.
COMMON = """
backbone = dict(
    model='biformer_tiny', out_reductions=(4, 8, 16), pretrained=False,
    kwargs=dict(embed_dims=(32, 64, 128), depths=(1, 1, 2), mlp_ratios=(2, 2, 2), head_dim=16, regions=4,
                top_k=(4, 8, None)),
)
data_root = {data!r}
metainfo = dict(classes=tuple('0123456789'))
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask={masks})]
of_images = dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
same_size = dict(type='Resize', scale=(128, 128), keep_ratio=True)
train_dataloader = dict(
    batch_size={batch}, num_workers=0, persistent_workers=False, batch_sampler=None,
    dataset=dict(data_root=data_root, ann_file='annotations/instances_train.json', data_prefix=dict(img='train/'),
                 metainfo=metainfo, pipeline=[*load, same_size, dict(type='PackDetInputs')]),
)
val_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=False,
    dataset=dict(data_root=data_root, ann_file='annotations/instances_validation.json',
                 data_prefix=dict(img='validation/'), metainfo=metainfo,
                 pipeline=[load[0], same_size, load[1], of_images]),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + '/annotations/instances_validation.json')
test_evaluator = val_evaluator
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters={steps}, val_interval={steps})
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end={warm_up}),
    dict(type='CosineAnnealingLR', by_epoch=False, begin={warm_up}, T_max={steps} - {warm_up}),
]
optim_wrapper = dict(optimizer=dict(lr=3e-3))
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval={steps} // 2, save_best='auto', max_keep_ckpts=5), logger=dict(interval=5)
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
"""

REGIONS = """
model = dict(
    backbone=backbone,
    neck=dict(in_channels=[32, 64, 128], out_channels=64, num_outs=4),
    rpn_head=dict(in_channels=64, feat_channels=64,
                  anchor_generator=dict(scales=[4, 5.6], ratios=[1.0, 1.6], strides=[4, 8, 16, 32])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, featmap_strides=[4, 8, 16], finest_scale=16),
        mask_roi_extractor=dict(out_channels=64, featmap_strides=[4, 8, 16], finest_scale=16),
        mask_head=dict(in_channels=64, conv_out_channels=64, num_convs=2, num_classes=10),
        {box_head}
    ),
    train_cfg=dict(rpn=dict(sampler=dict(num=64)), rpn_proposal=dict(max_per_img=64), {samples}),
    test_cfg=dict(rpn=dict(max_per_img=64), rcnn=dict(max_per_img=40)),
)
"""
BOX_HEAD = 'dict(in_channels=64, fc_out_channels=128, num_classes=10)'
SAMPLES = 'dict(sampler=dict(num=32))'

KINDS = {
    'mask_rcnn': (
        '_mask_rcnn_1x',
        True,
        REGIONS.format(box_head=f'bbox_head={BOX_HEAD}', samples=f'rcnn={SAMPLES}'),
    ),
    'cascade': (
        '_cascade_mask_rcnn_3x',
        True,
        # Lists are replaced, not merged.
        REGIONS.format(
            box_head='bbox_head=[{**head, "in_channels": 64, "conv_out_channels": 64, "fc_out_channels": 128, '
            '"num_classes": 10} for head in _base_.model.roi_head.bbox_head]',
            samples='rcnn=[{**one, "sampler": {**one["sampler"], "num": 32}} for one in _base_.model.train_cfg.rcnn]',
        ),
    ),
    'retinanet': (
        '_retinanet_1x',
        False,
        """
model = dict(
    backbone=backbone,
    neck=dict(in_channels=[32, 64, 128], out_channels=64, num_outs=4),
    bbox_head=dict(in_channels=64, feat_channels=64, stacked_convs=2, num_classes=10,
                   anchor_generator=dict(strides=[4, 8, 16, 32])),
)
""",
    ),
    'dino': (
        'dino_4scale_transnext_tiny',
        False,
        """
model = dict(
    backbone=dict(backbone, drop_path_rate=0.0),
    neck=dict(in_channels=[32, 64, 128]),
    num_queries=50,
    encoder=dict(num_layers=1),
    decoder=dict(num_layers=2),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=10)),
    bbox_head=dict(num_classes=10),
    test_cfg=dict(max_per_img=40),
)
""",
    ),
}


@pytest.fixture(scope='session')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('digits')
    digits.write(folder, 0, 24, 8)
    return folder


def write_config(folder: Path, kind: str, data: Path, steps: int, batch: int = 2) -> Path:
    base, masks, model = KINDS[kind]
    path = folder / f'{kind}.py'
    file = packaged()[base] if base in packaged() else packaged()['mask_rcnn_1x_biformer_small'].with_name(f'{base}.py')
    common = COMMON.format(data=str(data), masks=masks, steps=steps, batch=batch, warm_up=max(1, steps // 9))
    path.write_text(f'_base_ = {str(file)!r}\n{common}{model}')
    return path


def attnzoo_mmdet(*arguments: object, expected: int = 0) -> str:
    command = [sys.executable, '-W', 'ignore', '-m', 'attnzoo.mmdet', *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == expected, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


def losses(output: str) -> list[float]:
    return [float(loss) for loss in re.findall(r'Iter\(train\).* loss: ([\d.]+)', output)]


def is_scored(output: str) -> bool:
    """mmdet says that of a detector which has learned too little to find anything, and ends well."""
    return 'bbox_mAP' in output or 'testing results of the whole dataset is empty' in output


@pytest.mark.parametrize(
    'kind',
    [
        'mask_rcnn',
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ('retinanet', 'cascade', 'dino')),
    ],
)
def test_trains_saves_resumes_and_scores(kind, data, tmp_path):
    config, run = write_config(tmp_path, kind, data, steps=10), tmp_path / 'run'
    output = attnzoo_mmdet('train', config, '--work-dir', run)
    assert (
        len(losses(output)) == 2 and 'bbox_mAP' in output
    ) or 'testing results of the whole dataset is empty' in output
    checkpoint = torch.load(run / 'iter_5.pth', weights_only=True)
    assert checkpoint['meta']['iter'] == 5
    assert checkpoint['message_hub']['log_scalars']['train/loss']['log_history']

    # It goes on from the middle, with the history of its losses.
    (run / 'last_checkpoint').write_text(str(run / 'iter_5.pth'))
    resumed = attnzoo_mmdet('train', config, '--work-dir', run, '--resume')
    assert 'resumed epoch: 0, iter: 5' in resumed and 'just skip resuming' not in resumed
    assert losses(resumed) == pytest.approx(losses(output)[1:], rel=0.5)
    again = torch.load(run / 'iter_10.pth', weights_only=True)
    assert len(again['message_hub']['log_scalars']['train/loss']['log_history']) == 10

    scored = attnzoo_mmdet('test', config, run / 'iter_10.pth', '--work-dir', tmp_path / 'scored')
    assert is_scored(scored)


@pytest.mark.slow
def test_infers(data, tmp_path):
    config, run = write_config(tmp_path, 'mask_rcnn', data, steps=2), tmp_path / 'run'
    attnzoo_mmdet('train', config, '--work-dir', run)
    image = next((data / 'validation').iterdir())
    attnzoo_mmdet('infer', config, run / 'iter_2.pth', image, '--out', tmp_path / 'found', '--score', '0.01')
    found = json.loads((tmp_path / 'found' / 'preds' / f'{image.stem}.json').read_text())
    assert {'labels', 'scores', 'bboxes', 'masks'} <= set(found)
    (drawn,) = (tmp_path / 'found' / 'vis').iterdir()
    assert Image.open(drawn).size == Image.open(image).size


@pytest.mark.slow
def test_two_processes_train_on_a_cpu(data, tmp_path):
    config, run = write_config(tmp_path, 'retinanet', data, steps=4), tmp_path / 'run'
    output = attnzoo_mmdet('dist', 2, 'train', config, '--work-dir', run)
    assert 'MMDistributedDataParallel' in output or (run / 'iter_4.pth').is_file()
    assert all(not key.startswith('module.') for key in torch.load(run / 'iter_4.pth', weights_only=True)['state_dict'])


def test_a_checkpoint_of_mmengines_own_is_refused_in_one_line(data, tmp_path):
    """One that holds objects, as runners without our hook write it."""
    config = write_config(tmp_path, 'retinanet', data, steps=2)
    program = f"""
from mmengine.logging import HistoryBuffer
import torch
torch.save({{'state_dict': {{}}, 'message_hub': {{'loss': HistoryBuffer([1.0], [1])}}}}, {str(tmp_path / 'own.pth')!r})
"""
    subprocess.run([sys.executable, '-W', 'ignore', '-c', program], check=True)
    output = attnzoo_mmdet('test', config, tmp_path / 'own.pth', '--work-dir', tmp_path / 'run', expected=1)
    last = output.strip().splitlines()[-1]
    assert last.startswith('attnzoo: a checkpoint holds more than weights')
    assert 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1' in last


@pytest.mark.slow
def test_data_elsewhere(data, tmp_path):
    """--data-root reaches all data sets and metrics; where there is no data, one line says which option helps."""
    config = write_config(tmp_path, 'retinanet', Path('/nowhere'), steps=2)
    output = attnzoo_mmdet('train', config, '--work-dir', tmp_path / 'run', expected=1)
    assert output.strip().splitlines()[-1].endswith('--data-root DIR says where the data lies')
    attnzoo_mmdet(
        'train', config, '--work-dir', tmp_path / 'run', '--data-root', data, '--cfg-options', 'randomness.seed=3'
    )


@pytest.mark.slow
def test_mask_rcnn_learns_digits(tmp_path):
    digits.write(tmp_path / 'data', 0, 600, 60)
    config = write_config(tmp_path, 'mask_rcnn', tmp_path / 'data', steps=300, batch=8)
    attnzoo_mmdet('train', config, '--work-dir', tmp_path / 'run')
    (log,) = (tmp_path / 'run').glob('*/vis_data/scalars.json')
    last = json.loads(log.read_text().splitlines()[-1])
    assert last['coco/bbox_mAP_50'] >= 0.5
