# Mask R-CNN, 12 epochs, images of at most 1333 x 800.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/default_runtime.py',
    '_common.py',
]
model = dict(backbone=dict(_delete_=True, type='ZooBackbone', pretrained=True))
