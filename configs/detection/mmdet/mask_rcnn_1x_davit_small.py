# DaViT-S with Mask R-CNN, 12 epochs: box AP 47.7, mask AP 42.9 (github.com/dingmyu/davit, mmdet). The authors give a
# file for DaViT-T only: stochastic depth is that of their classifier.
_base_ = 'mask_rcnn_1x_davit_tiny.py'
model = dict(backbone=dict(model='davit_small_fused', drop_path_rate=0.2))
