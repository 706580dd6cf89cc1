# TransNeXt-T with Mask R-CNN, 1x: box AP 49.9, mask AP 44.6 (github.com/DaiShiResearch/TransNeXt). The authors compute
# position biases for images of 800 x 800 and resize them; here they are computed for each size.
_base_ = '_mask_rcnn_1x.py'
model = dict(
    backbone=dict(model='transnext_tiny', drop_path_rate=0.4),
    neck=dict(in_channels=[72, 144, 288, 576]),
)
