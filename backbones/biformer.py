"""BiFormer: a pyramid of bi-level routing attention.

Papers:
- `BiFormer: Vision Transformer with Bi-Level Routing Attention` - https://arxiv.org/abs/2303.08810

Written from the paper and the recorded numbers of the authors' models (https://github.com/rayleizhu/BiFormer, MIT),
whose checkpoints load through `checkpoint_filter_fn`.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.layers import ClassifierHead
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from attnzoo.blocks import BiLevelRoutingAttention, GlobalAttention, Mlp
from attnzoo.blocks._common import check_size
from attnzoo.kernels import depthwise_conv

from ._pyramid import Pyramid, Stage, check_stages, drop_path_rates, make_drop_path
from ._weights import (
    OfficialFile,
    build_model,
    imagenet_cfg,
    register_official_files,
    register_top1,
    rename_keys,
    unwrap,
)

__all__ = ['BiFormer']


class BiFormerBlock(nn.Module):
    """Depthwise position convolution (optional), attention and MLP, each with a shortcut. [B, H, W, C] -> [B, H, W,
    C]."""

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp_ratio: float,
        pos_conv: bool,
        drop_path: float,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd) if pos_conv else None
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.attn = attn
        self.drop_path1 = make_drop_path(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = Mlp(dim, int(mlp_ratio * dim), **dd)
        self.drop_path2 = make_drop_path(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        if self.pos_embed is not None:
            x = depthwise_conv(x, self.pos_embed.weight, self.pos_embed.bias, residual=True)
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        x = x + self.drop_path2(self.mlp(self.norm2(x)))
        return x


class BiFormer(Pyramid):
    """BiFormer, with any number of stages.

    Args:
        in_chans: Channels of the image.
        num_classes: Classes of the head, 0 for none.
        global_pool: Pooling of the head ('avg', 'max', ... or '' for none).
        embed_dims: Channels of each stage.
        depths: Blocks of each stage.
        mlp_ratios: MLP width over channels, for each stage.
        head_dim: Channels of a head in routed attention.
        global_heads: Heads of global attention, whatever its width.
        regions: Regions along each axis.
        top_k: Regions that a region attends to, for each stage; None makes the attention of that stage global.
        layout: 'biformer' (two strided convolutions as stem, overlapping downsampling, position convolutions) or 'swin'
            (patches as stem, patch merging, no position convolutions: the paper's ablation model, STL).
        padding: What happens where `regions` do not divide a map: 'input' or 'projection', see BiLevelRoutingAttention.
        mask_padding: Keep padding out of attention (the official numbers let it in).
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth rate of the last block; earlier ones grow to it linearly.

    Shape: [B, in_chans, H, W], H and W of 32 and more, rectangular and odd too -> [B, num_classes].
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'avg',
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 8, 2),
        mlp_ratios: Sequence[float] = (3.0, 3.0, 3.0, 3.0),
        head_dim: int = 32,
        global_heads: int = 8,
        regions: int = 7,
        top_k: Sequence[int | None] = (1, 4, 16, None),
        layout: str = 'biformer',
        padding: str = 'input',
        mask_padding: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        check_stages(embed_dims=embed_dims, depths=depths, mlp_ratios=mlp_ratios, top_k=top_k)
        if layout not in ('biformer', 'swin'):
            raise ValueError(f"layout: expected 'biformer' or 'swin', got {layout!r}")
        plain = layout == 'biformer'
        stem = (
            _conv_stem(in_chans, embed_dims[0], **dd)
            if plain
            else _patch_stem(in_chans, embed_dims[0], 2 ** (len(depths) + 1), **dd)
        )
        stages = []
        rates = drop_path_rates(drop_path_rate, depths)
        for i, (dim, depth, mlp_ratio, k) in enumerate(zip(embed_dims, depths, mlp_ratios, top_k, strict=True)):
            downsample = nn.Identity() if i == 0 else (_downsample if plain else _merge)(embed_dims[i - 1], dim, **dd)
            blocks = []
            for j in range(depth):
                attn = (
                    GlobalAttention(dim, global_heads, lepe_on_value=padding == 'projection', **dd)
                    if k is None
                    else BiLevelRoutingAttention(
                        dim, dim // head_dim, regions, k, padding=padding, mask_padding=mask_padding, **dd
                    )
                )
                blocks.append(BiFormerBlock(dim, attn, mlp_ratio, plain, rates[i][j], **dd))
            stages.append(Stage(downsample, blocks))
        super().__init__(
            stem,
            stages,
            norm=nn.BatchNorm2d(embed_dims[-1], **dd),
            head=ClassifierHead(embed_dims[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd),
            channels=embed_dims,
            in_chans=in_chans,
            num_classes=num_classes,
            drop_rate=drop_rate,
        )


def _conv_stem(in_chans: int, dim: int, **dd) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1, **dd),
            norm1=nn.BatchNorm2d(dim // 2, **dd),
            act=nn.GELU(),
            conv2=nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1, **dd),
            norm2=nn.BatchNorm2d(dim, **dd),
        )
    )


def _patch_stem(in_chans: int, dim: int, min_size: int, **dd) -> nn.Sequential:
    conv = nn.Conv2d(in_chans, dim, 4, stride=4, **dd)
    return nn.Sequential(OrderedDict(check=SizeCheck(min_size), conv=conv, norm=nn.BatchNorm2d(dim, **dd)))


class SizeCheck(nn.Module):
    """Refuses images that have no position left for the last stage: its merging takes whole patches only."""

    def __init__(self, least: int):
        super().__init__()
        self.least = least

    def forward(self, x: Tensor) -> Tensor:
        check_size(x, self.least)
        return x


def _downsample(in_dim: int, dim: int, **dd) -> nn.Sequential:
    conv = nn.Conv2d(in_dim, dim, 3, stride=2, padding=1, **dd)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(dim, **dd)))


def _merge(in_dim: int, dim: int, **dd) -> nn.Sequential:
    conv = nn.Conv2d(in_dim, dim, 2, stride=2, **dd)
    return nn.Sequential(OrderedDict(norm=nn.BatchNorm2d(in_dim, **dd), conv=conv))


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Official BiFormer checkpoints (channels-first ones too) -> ours; ours pass through."""
    state_dict = unwrap(state_dict)
    if any(key.startswith('stem.') for key in state_dict):
        return state_dict
    patches = 'downsample_layers.0.3.weight' not in state_dict
    stem = {'0': 'conv', '1': 'norm'} if patches else {'0': 'conv1', '1': 'norm1', '3': 'conv2', '4': 'norm2'}
    down = {'0': 'norm', '1': 'conv'} if patches else {'0': 'conv', '1': 'norm'}
    rules = (
        (r'^downsample_layers\.0\.(\d)', lambda m: f'stem.{stem[m[1]]}'),
        (r'^downsample_layers\.(\d)\.(\d)', lambda m: f'stages.{m[1]}.downsample.{down[m[2]]}'),
        (r'^stages\.(\d+)\.(\d+)\.', r'stages.\1.blocks.\2.'),
        (r'\.qkv\.qkv\.|\.qkv_linear\.', '.qkv.'),
        (r'\.wo\.|\.output_linear\.', '.proj.'),
        (r'\.mlp\.0\.', '.mlp.fc1.'),
        (r'\.mlp\.[23]\.', '.mlp.fc2.'),
        (r'^head\.', 'head.fc.'),
    )
    state_dict = rename_keys(state_dict, rules)
    for key, value in state_dict.items():
        if key.endswith(('qkv.weight', 'proj.weight', 'fc1.weight', 'fc2.weight')):
            state_dict[key] = value.flatten(1)  # 1x1 convolutions of the channels-first variant
    return state_dict


_REPOSITORY = 'https://github.com/rayleizhu/BiFormer'


_cfg = partial(
    imagenet_cfg,
    first_conv='stem.conv1',
    license='mit',
    paper_ids='arXiv:2303.08810',
    paper_name='BiFormer: Vision Transformer with Bi-Level Routing Attention',
    origin_url=_REPOSITORY,
)

default_cfgs = generate_default_cfgs(
    {
        'biformer_tiny.in1k': _cfg(),
        'biformer_small.in1k': _cfg(),
        'biformer_base.in1k': _cfg(),
        'biformer_stl.in1k': _cfg(first_conv='stem.conv'),
        'biformer_stl_nchw.in1k': _cfg(first_conv='stem.conv'),
    }
)
register_top1(
    {
        'biformer_tiny.in1k': 81.4,
        'biformer_small.in1k': 83.8,
        'biformer_base.in1k': 84.3,
        'biformer_stl.in1k': 82.7,
        'biformer_stl_nchw.in1k': 82.7,
    }
)

_LINK = 'https://api.onedrive.com/v1.0/shares/s!{}/root/content'
register_official_files(
    {
        f'biformer_{variant}.in1k': OfficialFile(
            name=f'biformer_{variant}_in1k.pth',
            page=_REPOSITORY,
            link=_LINK.format(share),
            status='its OneDrive link is reported dead',
        )
        for variant, share in {
            'tiny': 'AkBbczdRlZvChHEOoGkgwgQzEDlM',
            'small': 'AkBbczdRlZvChHDyM-x9KWRBZ832',
            'base': 'AkBbczdRlZvChHI_XPhoadjaNxtO',
            'stl': 'AkBbczdRlZvChSf-m7ujkvx9lIQ1',
            'stl_nchw': 'AkBbczdRlZvChWYrKbWbMgqd2Ai0',
        }.items()
    }
)


@register_model
def biformer_tiny(pretrained: bool = False, **kwargs) -> BiFormer:
    """BiFormer-T, 13.1 M parameters."""
    return build_model(BiFormer, 'biformer_tiny', pretrained, **kwargs)


@register_model
def biformer_small(pretrained: bool = False, **kwargs) -> BiFormer:
    """BiFormer-S, 25.5 M parameters."""
    model_args = dict(depths=(4, 4, 18, 4))
    return build_model(BiFormer, 'biformer_small', pretrained, **dict(model_args, **kwargs))


@register_model
def biformer_base(pretrained: bool = False, **kwargs) -> BiFormer:
    """BiFormer-B, 56.8 M parameters."""
    model_args = dict(depths=(4, 4, 18, 4), embed_dims=(96, 192, 384, 768))
    return build_model(BiFormer, 'biformer_base', pretrained, **dict(model_args, **kwargs))


_SWIN_TINY_LAYOUT = dict(
    depths=(2, 2, 6, 2), embed_dims=(96, 192, 384, 768), mlp_ratios=(4.0, 4.0, 4.0, 4.0), layout='swin'
)


@register_model
def biformer_stl(pretrained: bool = False, **kwargs) -> BiFormer:
    """Bi-level routing attention in the layout of Swin-T, 28.4 M parameters."""
    return build_model(BiFormer, 'biformer_stl', pretrained, **dict(_SWIN_TINY_LAYOUT, **kwargs))


@register_model
def biformer_stl_nchw(pretrained: bool = False, **kwargs) -> BiFormer:
    """`biformer_stl` with the arithmetic of the authors' later, channels-first code (another checkpoint)."""
    model_args = dict(_SWIN_TINY_LAYOUT, padding='projection')
    return build_model(BiFormer, 'biformer_stl_nchw', pretrained, **dict(model_args, **kwargs))
