# TransNeXt-B with DINO, 5 scales, 12 epochs: box AP 57.1 (github.com/DaiShiResearch/TransNeXt).
_base_ = 'dino_5scale_transnext_tiny.py'
model = dict(
    backbone=dict(model='transnext_base', drop_path_rate=0.6),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
