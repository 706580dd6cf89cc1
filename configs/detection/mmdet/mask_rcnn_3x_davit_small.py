# DaViT-S with Mask R-CNN, 3x: box AP 49.5, mask AP 44.3 (github.com/dingmyu/davit, mmdet). Stochastic depth is that of
# the classifier.
_base_ = 'mask_rcnn_3x_davit_tiny.py'
model = dict(backbone=dict(model='davit_small_fused', drop_path_rate=0.2))
