# RetinaNet, 12 epochs, images of at most 1333 x 800. The backbone makes no map of stride 4, which nothing would take.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/default_runtime.py',
    '_common.py',
]
model = dict(
    backbone=dict(_delete_=True, type='ZooBackbone', out_reductions=(8, 16, 32), pretrained=True),
    neck=dict(start_level=0),
)
