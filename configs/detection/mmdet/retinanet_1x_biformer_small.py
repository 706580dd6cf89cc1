# BiFormer-S with RetinaNet, 1x in half precision: box AP 45.9; the authors' second run 47.3
# (github.com/rayleizhu/BiFormer, object_detection). Everything is decayed, by little.
_base_ = '_retinanet_1x.py'
model = dict(
    backbone=dict(model='biformer_small', norm=True, norm_eval=True, drop_path_rate=0.2),
    neck=dict(in_channels=[128, 256, 512]),
)
optim_wrapper = dict(type='AmpOptimWrapper', loss_scale=512.0, optimizer=dict(weight_decay=1e-4), paramwise_cfg=None)
