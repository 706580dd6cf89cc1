# DaViT-B with Mask R-CNN, 3x: box AP 49.9, mask AP 44.6 (github.com/dingmyu/davit, mmdet). Stochastic depth is that of
# the classifier.
_base_ = 'mask_rcnn_3x_davit_tiny.py'
model = dict(
    backbone=dict(model='davit_base_fused', drop_path_rate=0.4),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
