# BiFormer-S with Mask R-CNN, 1x in half precision: box AP 47.8, mask AP 43.2; the authors' second run 48.1, 43.6
# (github.com/rayleizhu/BiFormer, object_detection).
_base_ = '_mask_rcnn_1x.py'
model = dict(
    backbone=dict(model='biformer_small', norm=True, norm_eval=True, drop_path_rate=0.2),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale=512.0,
    # The batch norms around the stages, which have no 'norm' in their names there: they are decayed.
    paramwise_cfg=dict(custom_keys={'model.stem.norm': dict(), 'downsample.norm': dict()}),
)
