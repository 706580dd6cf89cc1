# CrossFormer-S with Mask R-CNN, 1x: box AP 45.4, mask AP 41.4 (github.com/cheerss/CrossFormer, detection). Everything
# is decayed, by little.
_base_ = '_mask_rcnn_1x.py'
model = dict(
    backbone=dict(model='crossformer_small', drop_path_rate=0.2),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4), paramwise_cfg=None)
