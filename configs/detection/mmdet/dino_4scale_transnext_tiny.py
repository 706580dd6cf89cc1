# TransNeXt-T with DINO, 4 scales, 12 epochs: box AP 55.1 (github.com/DaiShiResearch/TransNeXt). 8 GPUs with one image
# each, two steps accumulated. The authors' file asks for half precision by a key that mmengine does not read: they
# trained in float32.
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'
custom_imports = dict(imports=['attnzoo.mmdet'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True,
        type='ZooBackbone',
        model='transnext_tiny',
        out_reductions=(8, 16, 32),
        pretrained=True,
        drop_path_rate=0.3,
    ),
    neck=dict(in_channels=[144, 288, 576]),
)
train_dataloader = dict(batch_size=1)

# In the backbone a tenth of the rate; no decay of norms, biases and what makes position biases. The authors' names
# leave out the patch embedding and the norm of the last stage, which learn at the full rate.
decayed, not_decayed = dict(lr_mult=0.1), dict(lr_mult=0.1, decay_mult=0.0)
optim_wrapper = dict(
    optimizer=dict(betas=(0.9, 0.999), weight_decay=0.05),
    accumulative_counts=2,
    paramwise_cfg=dict(
        _delete_=True,
        custom_keys={
            'backbone': decayed,
            **{
                name: not_decayed
                for name in (
                    'attn.query_embedding',
                    'attn.relative_pos_bias_local',
                    'attn.temperature',
                    'attn.cpb.',
                    'attn.norm.',
                    'attn.q.bias',
                    'attn.kv.bias',
                    'attn.qkv.bias',
                    'attn.sr.bias',
                    'attn.proj.bias',
                    'mlp.fc1.bias',
                    'mlp.fc2.bias',
                    'mlp.dwconv.bias',
                    *(f'model.stem.{name}' for name in ('norm.', 'conv.bias')),
                    *(f'stages.{stage}.downsample.{name}' for stage in (1, 2) for name in ('norm.', 'conv.bias')),
                    *(f'stages.{stage}.norm.' for stage in (0, 1, 2)),
                    *(f'blocks.{block}.norm{number}.' for block in range(23) for number in (1, 2)),
                )
            },
            'stages.3.downsample.norm.': dict(decay_mult=0.0),
            'stages.3.downsample.conv.bias': dict(decay_mult=0.0),
            'stages.3.downsample.conv.weight': dict(),
            'stages.3.norm.': dict(decay_mult=0.0),
        },
        bias_decay_mult=0.0,
        norm_decay_mult=0.0,
        flat_decay_mult=0.0,
    ),
)
