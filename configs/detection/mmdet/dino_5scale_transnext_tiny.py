# TransNeXt-T with DINO, 5 scales, 12 epochs: box AP 55.7 (github.com/DaiShiResearch/TransNeXt).
_base_ = 'dino_4scale_transnext_tiny.py'
model = dict(
    num_feature_levels=5,
    backbone=dict(out_reductions=(4, 8, 16, 32)),
    neck=dict(in_channels=[72, 144, 288, 576], num_outs=5),
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_levels=5))),
    decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(num_levels=5))),
)
