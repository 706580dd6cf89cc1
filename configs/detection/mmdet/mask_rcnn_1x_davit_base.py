# DaViT-B with Mask R-CNN, 12 epochs: box AP 48.2, mask AP 43.3 (github.com/dingmyu/davit, mmdet). Stochastic depth is
# that of the classifier.
_base_ = 'mask_rcnn_1x_davit_tiny.py'
model = dict(
    backbone=dict(model='davit_base_fused', drop_path_rate=0.4),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
