# TransNeXt-S with DINO, 5 scales, 12 epochs: box AP 56.6 (github.com/DaiShiResearch/TransNeXt).
_base_ = 'dino_5scale_transnext_tiny.py'
model = dict(backbone=dict(model='transnext_small', drop_path_rate=0.5))
