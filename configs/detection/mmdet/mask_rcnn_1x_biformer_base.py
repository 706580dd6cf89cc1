# BiFormer-B with Mask R-CNN, 1x in half precision: box AP 48.6, mask AP 43.7
# (github.com/rayleizhu/BiFormer, object_detection).
_base_ = 'mask_rcnn_1x_biformer_small.py'
model = dict(
    backbone=dict(model='biformer_base', drop_path_rate=0.3),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
