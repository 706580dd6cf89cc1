# TransNeXt-S with Mask R-CNN, 1x: box AP 51.1, mask AP 45.5 (github.com/DaiShiResearch/TransNeXt).
_base_ = 'mask_rcnn_1x_transnext_tiny.py'
model = dict(backbone=dict(model='transnext_small', drop_path_rate=0.6))
