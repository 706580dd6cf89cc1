"""TransNeXt: a pyramid of aggregated attention and convolutional GLUs.

Papers:
- `TransNeXt: Robust Foveal Visual Perception for Vision Transformers` - https://arxiv.org/abs/2311.17132

Written from the paper and the recorded numbers of the authors' models (https://github.com/DaiShiResearch/TransNeXt,
Apache-2.0), whose checkpoints load through `checkpoint_filter_fn`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import ClassifierHead
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from attnzoo.blocks import AggregatedAttention, ConvolutionalGLU, LengthScaledAttention

from ._pyramid import Pyramid, Stage, check_stages, drop_path_rates, make_drop_path
from ._weights import build_model, imagenet_cfg, register_top1, rename_keys, unwrap

__all__ = ['TransNeXt']


class PatchEmbedding(nn.Module):
    """A convolution whose kernels overlap, then a layer norm. [B, C, H, W] -> [B, D, ceil(H / s), ceil(W / s)]."""

    def __init__(self, in_dim: int, dim: int, kernel: int, stride: int, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, kernel, stride, padding=kernel // 2, **dd)
        self.norm = nn.LayerNorm(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TransNeXtBlock(nn.Module):
    """An attention and a convolutional GLU, each behind a layer norm and with a shortcut. [B, H, W, C] -> the same."""

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp_ratio: float,
        drop: float,
        drop_path: float,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.attn = attn
        self.drop_path1 = make_drop_path(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = ConvolutionalGLU(dim, int(dim * mlp_ratio), drop, **dd)
        self.drop_path2 = make_drop_path(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class TransNeXt(Pyramid):
    """TransNeXt, with any number of stages.

    Each stage ends with a layer norm: the normed map is what the next stage takes and what features are, as in the
    authors' code for dense prediction.

    Args:
        in_chans: Channels of the image.
        num_classes: Classes of the head, 0 for none.
        global_pool: Pooling of the head ('avg', 'max', ... or '' for none).
        embed_dims: Channels of each stage.
        depths: Blocks of each stage.
        mlp_ratios: Width of the MLP that a convolutional GLU stands for over channels, for each stage.
        pool_ratios: Size of the map over that of the pooled map, for each stage; None makes the attention of that
            stage global.
        head_dim: Channels of a head.
        pretrain_size: Size of the images at pre-training, a number or (height, width): what the position biases
            measure distances by.
        interpolate_bias: Compute the position biases for images of `pretrain_size`, and resize them for others; else
            they are computed for the actual size. Two settings of the authors' code for dense prediction ('interp' and
            'extrap'); their classifiers do the latter.
        drop_rate: Dropout before the classifier.
        attn_drop_rate: Dropout of attention weights.
        proj_drop_rate: Dropout of what attentions put out, and in convolutional GLUs.
        drop_path_rate: Stochastic depth rate of the last block; earlier ones grow to it linearly.

    Shape: [B, in_chans, H, W], H and W of 32 and more, rectangular and odd too -> [B, num_classes].

    Raises:
        ValueError: An argument is out of range or does not fit the others.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'avg',
        embed_dims: Sequence[int] = (48, 96, 192, 384),
        depths: Sequence[int] = (2, 2, 15, 2),
        mlp_ratios: Sequence[float] = (8.0, 8.0, 4.0, 4.0),
        pool_ratios: Sequence[int | None] = (8, 4, 2, None),
        head_dim: int = 24,
        pretrain_size: int | tuple[int, int] = 224,
        interpolate_bias: bool = False,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        check_stages(embed_dims=embed_dims, depths=depths, mlp_ratios=mlp_ratios, pool_ratios=pool_ratios)
        height, width = (pretrain_size, pretrain_size) if isinstance(pretrain_size, int) else pretrain_size
        stages = []
        rates = drop_path_rates(drop_path_rate, depths)
        for i, (dim, pool_ratio) in enumerate(zip(embed_dims, pool_ratios, strict=True)):
            if head_dim < 1 or dim % head_dim:
                raise ValueError(f'head_dim: expected a divisor of {dim} channels, got {head_dim}')
            stride = 4 * 2**i
            tokens = math.ceil(height / stride), math.ceil(width / stride)
            blocks = []
            for rate in rates[i]:
                arguments: dict[str, Any] = dict(
                    num_heads=dim // head_dim,
                    pretrain_size=tokens,
                    bias_size=tokens if interpolate_bias else None,
                    attn_drop=attn_drop_rate,
                    proj_drop=proj_drop_rate,
                    **dd,
                )
                attn: nn.Module
                if pool_ratio is None:
                    attn = LengthScaledAttention(dim, **arguments)
                else:
                    attn = AggregatedAttention(dim, pool_ratio=pool_ratio, **arguments)
                blocks.append(TransNeXtBlock(dim, attn, mlp_ratios[i], proj_drop_rate, rate, **dd))
            downsample = nn.Identity() if i == 0 else PatchEmbedding(embed_dims[i - 1], dim, 3, 2, **dd)
            stages.append(Stage(downsample, blocks, nn.LayerNorm(dim, eps=1e-6, **dd)))
        super().__init__(
            PatchEmbedding(in_chans, embed_dims[0], 7, 4, **dd),
            stages,
            norm=nn.Identity(),
            head=ClassifierHead(embed_dims[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd),
            channels=embed_dims,
            in_chans=in_chans,
            num_classes=num_classes,
            drop_rate=drop_rate,
        )

    @staticmethod
    def init_module(module: nn.Module) -> None:
        """As the authors: truncated normal matrices, convolutions by their fan-out, no biases."""
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        else:
            return
        if module.bias is not None:
            nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        own = ('temperature', 'query_embedding', 'relative_pos_bias_local')
        return {name for name, _ in self.named_parameters() if name.endswith(own) or '.cpb.' in name}


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Official TransNeXt checkpoints, of classifiers and of dense prediction -> ours; ours pass through."""
    return rename_keys(
        unwrap(state_dict),
        (
            (r'^patch_embed1\.proj\.', 'stem.conv.'),
            (r'^patch_embed1\.', 'stem.'),
            (r'^patch_embed(\d)\.proj\.', lambda m: f'stages.{int(m[1]) - 1}.downsample.conv.'),
            (r'^patch_embed(\d)\.', lambda m: f'stages.{int(m[1]) - 1}.downsample.'),
            (r'^block(\d)\.(\d+)\.', lambda m: f'stages.{int(m[1]) - 1}.blocks.{m[2]}.'),
            (r'^norm(\d)\.', lambda m: f'stages.{int(m[1]) - 1}.norm.'),
            (r'\.cpb_fc', '.cpb.fc'),
            (r'\.dwconv\.dwconv\.', '.dwconv.'),
            (r'^head\.(weight|bias)$', r'head.fc.\1'),
        ),
    )


def _cfg(checkpoint: str, **facts: Any) -> dict[str, Any]:
    """Of a checkpoint, which the authors keep on Hugging Face."""
    return imagenet_cfg(
        hf_hub_id=f'DaiShiResearch/transnext-{checkpoint}',
        hf_hub_filename=f'transnext_{checkpoint.replace("-", "_")}.pth',
        first_conv='stem.conv',
        license='apache-2.0',
        paper_ids='arXiv:2311.17132',
        paper_name='TransNeXt: Robust Foveal Visual Perception for Vision Transformers',
        origin_url='https://github.com/DaiShiResearch/TransNeXt',
        **facts,
    )


# From 384 on the authors' evaluation resizes the whole image, whatever its shape.
_AT_384 = dict(input_size=(3, 384, 384), pool_size=(12, 12), crop_pct=1.0, crop_mode='squash')

default_cfgs = generate_default_cfgs(
    {
        'transnext_micro.in1k': _cfg('micro-224-1k'),
        'transnext_tiny.in1k': _cfg('tiny-224-1k'),
        'transnext_small.in1k': _cfg('small-224-1k'),
        'transnext_small.in1k_384': _cfg('small-384-1k-ft-1k', **_AT_384),
        'transnext_base.in1k': _cfg('base-224-1k'),
        'transnext_base.in1k_384': _cfg('base-384-1k-ft-1k', **_AT_384),
        'transnext_micro_aaaa.in1k': _cfg('micro-AAAA-256-1k', input_size=(3, 256, 256), pool_size=(8, 8)),
    }
)
register_top1(
    {
        'transnext_micro.in1k': 82.5,
        'transnext_tiny.in1k': 84.0,
        'transnext_small.in1k': 84.7,
        'transnext_small.in1k_384': 86.0,
        'transnext_base.in1k': 84.8,
        'transnext_base.in1k_384': 86.2,
        'transnext_micro_aaaa.in1k': 82.6,
    }
)


@register_model
def transnext_micro(pretrained: bool = False, **kwargs) -> TransNeXt:
    """TransNeXt-Micro, 12.8 M parameters."""
    return build_model(TransNeXt, 'transnext_micro', pretrained, **kwargs)


@register_model
def transnext_tiny(pretrained: bool = False, **kwargs) -> TransNeXt:
    """TransNeXt-Tiny, 28.3 M parameters."""
    model_args = dict(embed_dims=(72, 144, 288, 576))
    return build_model(TransNeXt, 'transnext_tiny', pretrained, **dict(model_args, **kwargs))


@register_model
def transnext_small(pretrained: bool = False, **kwargs) -> TransNeXt:
    """TransNeXt-Small, 49.7 M parameters."""
    model_args = dict(embed_dims=(72, 144, 288, 576), depths=(5, 5, 22, 5))
    return build_model(TransNeXt, 'transnext_small', pretrained, **dict(model_args, **kwargs))


@register_model
def transnext_base(pretrained: bool = False, **kwargs) -> TransNeXt:
    """TransNeXt-Base, 89.7 M parameters."""
    model_args = dict(embed_dims=(96, 192, 384, 768), depths=(5, 5, 23, 5))
    return build_model(TransNeXt, 'transnext_base', pretrained, **dict(model_args, **kwargs))


@register_model
def transnext_micro_aaaa(pretrained: bool = False, **kwargs) -> TransNeXt:
    """TransNeXt-Micro with aggregated attention in all stages, pre-trained at 256 x 256, 13.1 M parameters."""
    model_args = dict(pool_ratios=(16, 8, 4, 2), pretrain_size=256)
    return build_model(TransNeXt, 'transnext_micro_aaaa', pretrained, **dict(model_args, **kwargs))
