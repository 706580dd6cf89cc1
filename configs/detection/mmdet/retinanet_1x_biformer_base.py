# BiFormer-B with RetinaNet, 1x in half precision: box AP 47.1 (github.com/rayleizhu/BiFormer, object_detection).
_base_ = 'retinanet_1x_biformer_small.py'
model = dict(
    backbone=dict(model='biformer_base', drop_path_rate=0.3),
    neck=dict(in_channels=[192, 384, 768]),
)
