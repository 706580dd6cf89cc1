# DaViT-T with Mask R-CNN, 3x: box AP 47.4, mask AP 42.9 (github.com/dingmyu/davit, mmdet). Everything is decayed.
_base_ = '_mask_rcnn_3x.py'
model = dict(
    backbone=dict(model='davit_tiny_fused', norm=True, drop_path_rate=0.2),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(paramwise_cfg=None)
