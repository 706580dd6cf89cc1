# DaViT-T with Mask R-CNN, 12 epochs: box AP 45.0, mask AP 41.1 (github.com/dingmyu/davit, mmdet). With several sizes
# and crops, so not to be compared with other 1x recipes. Everything is decayed.
_base_ = '_mask_rcnn_1x.py'
model = dict(
    backbone=dict(model='davit_tiny_fused', norm=True, drop_path_rate=0.1),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(paramwise_cfg=None)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    *_base_.multi_scale_crop,
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
