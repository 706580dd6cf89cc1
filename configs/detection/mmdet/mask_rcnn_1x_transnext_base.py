# TransNeXt-B with Mask R-CNN, 1x in half precision: box AP 51.7, mask AP 45.9 (github.com/DaiShiResearch/TransNeXt).
_base_ = 'mask_rcnn_1x_transnext_tiny.py'
model = dict(
    backbone=dict(model='transnext_base', drop_path_rate=0.7),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(type='AmpOptimWrapper', loss_scale=512.0)
