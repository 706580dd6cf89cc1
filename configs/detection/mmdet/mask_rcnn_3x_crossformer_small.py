# CrossFormer-S with Mask R-CNN, 3x: box AP 48.7, mask AP 43.9 (github.com/cheerss/CrossFormer, detection). The authors
# give no file for it: the optimizer is that of their 1x.
_base_ = '_mask_rcnn_3x.py'
model = dict(
    backbone=dict(model='crossformer_small', drop_path_rate=0.2),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4), paramwise_cfg=None)
