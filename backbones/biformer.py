"""BiFormer: a pyramid of bi-level routing attention.

Papers:
- `BiFormer: Vision Transformer with Bi-Level Routing Attention` - https://arxiv.org/abs/2303.08810

Written from the paper and the recorded numbers of the authors' models (https://github.com/rayleizhu/BiFormer, MIT),
whose checkpoints load through `checkpoint_filter_fn`.
"""

import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead, DropPath, Mlp, calculate_drop_path_rates, get_device_dtype, trunc_normal_
from timm.models import checkpoint, checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn

from attnzoo.blocks import BiLevelRoutingAttention, GlobalAttention

from ._timm import feature_take_indices
from ._weights import OfficialFile, build_model, register_official_files

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
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = Mlp(dim, int(mlp_ratio * dim), **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.pos_embed is not None:
            x = x + self.pos_embed(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        x = x + self.drop_path2(self.mlp(self.norm2(x)))
        return x


class BiFormerStage(nn.Module):
    """Downsampling, then blocks. [B, C, H, W] in and out; the blocks work channels last."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]):
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x).permute(0, 2, 3, 1).contiguous()
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return x.permute(0, 3, 1, 2)


class BiFormer(nn.Module):
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
        super().__init__()
        if not len(embed_dims) == len(depths) == len(mlp_ratios) == len(top_k):
            raise ValueError(
                'embed_dims, depths, mlp_ratios and top_k: expected one entry for each stage, '
                f'got {len(embed_dims)}, {len(depths)}, {len(mlp_ratios)} and {len(top_k)}'
            )
        if layout not in ('biformer', 'swin'):
            raise ValueError(f"layout: expected 'biformer' or 'swin', got {layout!r}")
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = embed_dims[-1]
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.feature_info = []

        plain = layout == 'biformer'
        self.stem = _conv_stem(in_chans, embed_dims[0], **dd) if plain else _patch_stem(in_chans, embed_dims[0], **dd)
        stages = []
        drop_path_rates = cast(
            list[list[float]], calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        )
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
                blocks.append(BiFormerBlock(dim, attn, mlp_ratio, plain, drop_path_rates[i][j], **dd))
            stages.append(BiFormerStage(downsample, blocks))
            self.feature_info.append(dict(num_chs=dim, reduction=2 ** (i + 2), module=f'stages.{i}'))
        self.stages = nn.Sequential(*stages)
        self.norm: nn.Module = nn.BatchNorm2d(self.num_features, **dd)
        self.head = ClassifierHead(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        self.head_hidden_size = self.head.num_features
        self.init_weights(needs_reset=False)

    @torch.jit.ignore
    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialise all weights; `needs_reset` also resets the layers that have initialised themselves on creation."""
        for module in self.modules():
            if needs_reset and isinstance(module, (nn.Conv2d, nn.Linear, nn.LayerNorm, nn.BatchNorm2d)):
                module.reset_parameters()
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = [
            (r'^stages\.(\d+)\.downsample', (0,)),
            (r'^stages\.(\d+)\.blocks\.(\d+)', None),
            (r'^norm', (99999,)),
        ]
        return dict(stem=r'^stem', blocks=r'^stages\.(\d+)' if coarse else blocks)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable
        for stage in cast(list[BiFormerStage], self.stages):
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        dd = get_device_dtype(self)
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, reset_other=reset_other, in_features=self.num_features, **dd)
        self.head_hidden_size = self.head.num_features

    @torch.jit.ignore
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features of the chosen stages, [B, C, H, W] each, after the final features unless `intermediates_only`.

        Args:
            x: Images [B, in_chans, H, W].
            indices: The last n stages if an int, all if None, these if a list.
            norm: Apply the final norm to the last stage's map.
            stop_early: Run no stage beyond the last one asked for.
            output_fmt: 'NCHW'.
            intermediates_only: Return the list alone.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt: expected 'NCHW', got {output_fmt!r}")
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        intermediates = []
        x = self.stem(x)
        for i, stage in enumerate(self.stages[: max_index + 1] if stop_early else self.stages):
            x = raw = checkpoint(stage, x) if self.grad_checkpointing else stage(x)
            if i == len(self.stages) - 1:
                x = self.norm(x)
            if i in take_indices:
                intermediates.append(x if norm else raw)
        return intermediates if intermediates_only else (x, intermediates)

    @torch.jit.ignore
    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages, norm and head that the chosen intermediates do not need."""
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        prune_end = max_index < len(self.stages) - 1
        if prune_norm or prune_end:
            self.norm = nn.Identity()
        self.stages = self.stages[: max_index + 1]
        if prune_end:
            self.num_features = self.head_hidden_size = self.feature_info[max_index]['num_chs']
        if prune_head or prune_end:
            self.reset_classifier(0, '', reset_other=True)
        return take_indices

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.stages(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.forward_features(x)
        return self.forward_head(x)


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


def _patch_stem(in_chans: int, dim: int, **dd) -> nn.Sequential:
    conv = nn.Conv2d(in_chans, dim, 4, stride=4, **dd)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(dim, **dd)))


def _downsample(in_dim: int, dim: int, **dd) -> nn.Sequential:
    conv = nn.Conv2d(in_dim, dim, 3, stride=2, padding=1, **dd)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(dim, **dd)))


def _merge(in_dim: int, dim: int, **dd) -> nn.Sequential:
    conv = nn.Conv2d(in_dim, dim, 2, stride=2, **dd)
    return nn.Sequential(OrderedDict(norm=nn.BatchNorm2d(in_dim, **dd), conv=conv))


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Official BiFormer checkpoints (channels-first ones too) -> ours; ours pass through."""
    state_dict = state_dict.get('model', state_dict)
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
    converted = {}
    for key, value in state_dict.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        if key.endswith(('qkv.weight', 'proj.weight', 'fc1.weight', 'fc2.weight')):
            value = value.flatten(1)  # 1x1 convolutions of the channels-first variant
        converted[key] = value
    return converted


_REPOSITORY = 'https://github.com/rayleizhu/BiFormer'


def _cfg(first_conv: str = 'stem.conv1', **kwargs) -> dict[str, Any]:
    return {
        'num_classes': 1000,
        'input_size': (3, 224, 224),
        'pool_size': (7, 7),
        'crop_pct': 0.875,
        'interpolation': 'bicubic',
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'first_conv': first_conv,
        'classifier': 'head.fc',
        'license': 'mit',
        'paper_ids': 'arXiv:2303.08810',
        'paper_name': 'BiFormer: Vision Transformer with Bi-Level Routing Attention',
        'origin_url': _REPOSITORY,
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        'biformer_tiny.in1k': _cfg(),
        'biformer_small.in1k': _cfg(),
        'biformer_base.in1k': _cfg(),
        'biformer_stl.in1k': _cfg('stem.conv'),
        'biformer_stl_nchw.in1k': _cfg('stem.conv'),
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


def _create_biformer(variant: str, pretrained: bool = False, **kwargs) -> BiFormer:
    return build_model(
        BiFormer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=(0, 1, 2, 3), flatten_sequential=True),
        **kwargs,
    )


@register_model
def biformer_tiny(pretrained: bool = False, **kwargs) -> BiFormer:
    """BiFormer-T, 13.1 M parameters."""
    return _create_biformer('biformer_tiny', pretrained, **kwargs)


@register_model
def biformer_small(pretrained: bool = False, **kwargs) -> BiFormer:
    """BiFormer-S, 25.5 M parameters."""
    model_args = dict(depths=(4, 4, 18, 4))
    return _create_biformer('biformer_small', pretrained, **dict(model_args, **kwargs))


@register_model
def biformer_base(pretrained: bool = False, **kwargs) -> BiFormer:
    """BiFormer-B, 56.8 M parameters."""
    model_args = dict(depths=(4, 4, 18, 4), embed_dims=(96, 192, 384, 768))
    return _create_biformer('biformer_base', pretrained, **dict(model_args, **kwargs))


_SWIN_TINY_LAYOUT = dict(
    depths=(2, 2, 6, 2), embed_dims=(96, 192, 384, 768), mlp_ratios=(4.0, 4.0, 4.0, 4.0), layout='swin'
)


@register_model
def biformer_stl(pretrained: bool = False, **kwargs) -> BiFormer:
    """Bi-level routing attention in the layout of Swin-T, 28.4 M parameters."""
    return _create_biformer('biformer_stl', pretrained, **dict(_SWIN_TINY_LAYOUT, **kwargs))


@register_model
def biformer_stl_nchw(pretrained: bool = False, **kwargs) -> BiFormer:
    """`biformer_stl` with the arithmetic of the authors' later, channels-first code (another checkpoint)."""
    model_args = dict(_SWIN_TINY_LAYOUT, padding='projection')
    return _create_biformer('biformer_stl_nchw', pretrained, **dict(model_args, **kwargs))
