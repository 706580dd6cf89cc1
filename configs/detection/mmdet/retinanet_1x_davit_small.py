# DaViT-S with RetinaNet, 12 epochs: box AP 46.0 (github.com/dingmyu/davit, mmdet). Stochastic depth is that of the
# classifier.
_base_ = 'retinanet_1x_davit_tiny.py'
model = dict(backbone=dict(model='davit_small_fused', drop_path_rate=0.2))
