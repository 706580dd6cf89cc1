# DaViT-T with RetinaNet, 12 epochs: box AP 44.0 (github.com/dingmyu/davit, mmdet). With several sizes and crops;
# everything is decayed.
_base_ = '_retinanet_1x.py'
model = dict(
    backbone=dict(model='davit_tiny_fused', norm=True, drop_path_rate=0.1),
    neck=dict(in_channels=[192, 384, 768]),
)
optim_wrapper = dict(paramwise_cfg=None)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    *_base_.multi_scale_crop,
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
