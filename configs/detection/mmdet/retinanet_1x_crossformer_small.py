# CrossFormer-S with RetinaNet, 1x: box AP 44.4 (github.com/cheerss/CrossFormer, detection). Everything is decayed, by
# little.
_base_ = '_retinanet_1x.py'
model = dict(
    backbone=dict(model='crossformer_small', drop_path_rate=0.2),
    neck=dict(in_channels=[192, 384, 768]),
)
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4), paramwise_cfg=None)
