# DaViT-B with RetinaNet, 12 epochs: box AP 46.7 (github.com/dingmyu/davit, mmdet). Stochastic depth is that of the
# classifier.
_base_ = 'retinanet_1x_davit_tiny.py'
model = dict(
    backbone=dict(model='davit_base_fused', drop_path_rate=0.4),
    neck=dict(in_channels=[256, 512, 1024]),
)
