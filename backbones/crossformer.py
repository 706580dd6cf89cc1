"""CrossFormer and CrossFormer++: patches of several sizes, and attention over short and long distances.

Papers:
- `CrossFormer: A Versatile Vision Transformer Hinging on Cross-scale Attention` - https://arxiv.org/abs/2108.00154
- `CrossFormer++: A Versatile Vision Transformer Hinging on Cross-scale Attention` - https://arxiv.org/abs/2303.06908

Written from the papers and the recorded numbers of the authors' models (https://github.com/cheerss/CrossFormer, MIT),
whose checkpoints load through `checkpoint_filter_fn`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.layers import ClassifierHead, LayerNorm2d
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from attnzoo.blocks import CrossScaleEmbedding, LongShortAttention, Mlp
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

__all__ = ['CrossFormer']


class CrossFormerBlock(nn.Module):
    """Attention and MLP, each with a norm and a shortcut, then perhaps a cooling layer. [B, H, W, C] -> [B, H, W,
    C]."""

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp_ratio: float,
        cooling: bool,
        drop_path: float,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.attn = attn
        self.drop_path1 = make_drop_path(drop_path)
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, int(mlp_ratio * dim), **dd)
        self.drop_path2 = make_drop_path(drop_path)
        self.cooling = CoolingLayer(dim, **dd) if cooling else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        x = x + self.drop_path2(self.mlp(self.norm2(x)))
        return self.cooling(x)


class CoolingLayer(nn.Module):
    """Activation cooling layer (ACL) of CrossFormer++: a depthwise convolution and a norm without a shortcut, so that
    activations cannot grow from block to block. [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, dim: int, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd)
        self.norm = nn.LayerNorm(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(depthwise_conv(x, self.conv.weight, self.conv.bias))


class CrossFormer(Pyramid):
    """CrossFormer and CrossFormer++, with any number of stages.

    Blocks attend by turns over short distances (groups of adjacent tokens) and long ones (tokens an interval apart).

    Args:
        in_chans: Channels of the image.
        num_classes: Classes of the head, 0 for none.
        global_pool: Pooling of the head ('avg', 'max', ... or '' for none).
        embed_dims: Channels of each stage.
        depths: Blocks of each stage.
        groups: Tokens of a group along each axis, for each stage; a map that is no higher or no wider is one group.
        intervals: Distance of the tokens of a group in long distance attention, for each stage.
        head_dim: Channels of a head.
        mlp_ratio: MLP width over channels.
        cooling: Put a cooling layer behind every third block of a stage, unless that is the last (CrossFormer++).
        patch_sizes: Kernels of the first embedding.
        merge_sizes: Kernels of the embeddings between stages.
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
        depths: Sequence[int] = (1, 1, 8, 6),
        groups: Sequence[int] = (7, 7, 7, 7),
        intervals: Sequence[int] = (8, 4, 2, 1),
        head_dim: int = 32,
        mlp_ratio: float = 4.0,
        cooling: bool = False,
        patch_sizes: Sequence[int] = (4, 8, 16, 32),
        merge_sizes: Sequence[int] = (2, 4),
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        check_stages(embed_dims=embed_dims, depths=depths, groups=groups, intervals=intervals)
        stem = CrossScaleEmbedding(
            in_chans, embed_dims[0], tuple(patch_sizes), channels_first=True, min_size=2 ** (len(depths) + 1), **dd
        )
        merge: dict[str, Any] = dict(kernels=tuple(merge_sizes), stride=2, norm_first=True, channels_first=True)
        stages = []
        rates = drop_path_rates(drop_path_rate, depths)
        for i, (dim, depth) in enumerate(zip(embed_dims, depths, strict=True)):
            downsample = nn.Identity() if i == 0 else CrossScaleEmbedding(embed_dims[i - 1], dim, **merge, **dd)
            blocks = []
            for j in range(depth):
                attn = LongShortAttention(
                    dim, dim // head_dim, group=groups[i], interval=intervals[i] if j % 2 else 1, **dd
                )
                cool = cooling and j % 3 == 2 and j < depth - 1
                blocks.append(CrossFormerBlock(dim, attn, mlp_ratio, cool, rates[i][j], **dd))
            stages.append(Stage(downsample, blocks))
        super().__init__(
            stem,
            stages,
            norm=LayerNorm2d(embed_dims[-1], eps=1e-5, **dd),
            head=ClassifierHead(embed_dims[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd),
            channels=embed_dims,
            in_chans=in_chans,
            num_classes=num_classes,
            drop_rate=drop_rate,
        )


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Official checkpoints of CrossFormer and CrossFormer++ -> ours; ours pass through."""
    state_dict = unwrap(state_dict)
    if any(key.startswith('stem.') for key in state_dict):
        return state_dict
    rules = (
        (r'^patch_embed\.', 'stem.'),
        (r'^layers\.(\d+)\.downsample\.', lambda m: f'stages.{int(m[1]) + 1}.downsample.'),
        (r'^layers\.', 'stages.'),
        (r'\.downsample\.reductions\.', '.downsample.projs.'),
        (r'\.ex_conv\.', '.cooling.conv.'),
        (r'\.ex_ln\.', '.cooling.norm.'),
        (r'^head\.', 'head.fc.'),
    )
    # Older files hold tables that follow from the sizes, as buffers.
    tables = ('.attn.biases', '.attn.relative_position_index', '.attn_mask')
    return {key: value for key, value in rename_keys(state_dict, rules).items() if not key.endswith(tables)}


_REPOSITORY = 'https://github.com/cheerss/CrossFormer'
_cfg = partial(
    imagenet_cfg,
    first_conv=tuple(f'stem.projs.{i}' for i in range(4)),
    license='mit',
    paper_ids='arXiv:2108.00154',
    paper_name='CrossFormer: A Versatile Vision Transformer Hinging on Cross-scale Attention',
    origin_url=_REPOSITORY,
)
_cfg_pp = partial(
    _cfg,
    paper_ids='arXiv:2303.06908',
    paper_name='CrossFormer++: A Versatile Vision Transformer Hinging on Cross-scale Attention',
)

default_cfgs = generate_default_cfgs(
    {
        'crossformer_tiny.in1k': _cfg(),
        'crossformer_small.in1k': _cfg(),
        'crossformer_base.in1k': _cfg(),
        'crossformer_large.in1k': _cfg(),
        'crossformer_pp_small.in1k': _cfg_pp(),
        'crossformer_pp_base.in1k': _cfg_pp(),
        'crossformer_pp_large.in1k': _cfg_pp(),
        'crossformer_pp_huge.in1k': _cfg_pp(),
    }
)
register_top1(
    {
        'crossformer_tiny.in1k': 81.5,
        'crossformer_small.in1k': 82.5,
        'crossformer_base.in1k': 83.4,
        'crossformer_large.in1k': 84.0,
        'crossformer_pp_small.in1k': 83.2,
        'crossformer_pp_base.in1k': 84.2,
        'crossformer_pp_large.in1k': 84.7,
        'crossformer_pp_huge.in1k': 84.9,
    }
)

_DRIVE = 'https://drive.google.com/file/d/{}/view?usp=sharing', 'its Google Drive link is listed, not tried'
_BAIDU = 'https://pan.baidu.com/s/{}?pwd=crsf', 'its link leads to a page of Baidu, listed, not tried'
register_official_files(
    {
        f'crossformer_{variant}.in1k': OfficialFile(
            name=file,
            page=_REPOSITORY,
            link=link.format(share),
            status=status,
        )
        for variant, file, (link, status), share in (
            ('tiny', 'crossformer-t.pth', _DRIVE, '1YSkU9enn-ITyrbxLH13zNcBYvWSEidfq'),
            ('small', 'crossformer-s.pth', _DRIVE, '1RAkigsgr33va0RZ85S2Shs2BhXYcS6U8'),
            ('base', 'crossformer-b.pth', _DRIVE, '1bK8biVCi17nz_nkt7rBfio_kywUpllSU'),
            ('large', 'crossformer-l.pth', _DRIVE, '1zRWByVW_KIZ87NgaBkDIm60DAsGJErdG'),
            ('pp_small', 'crossformer-pp-s.pth', _BAIDU, '1smc_kRoogd0Ig5vfqwuGTA'),
            ('pp_base', 'crossformer-pp-b.pth', _BAIDU, '13XVP0ebtNcyRMmkl11ALYg'),
            ('pp_large', 'crossformer-pp-l.pth', _BAIDU, '1xtPh-ndcOxRM7fPYYxIIRg'),
            ('pp_huge', 'crossformer-pp-h.pth', _BAIDU, '1xtPh-ndcOxRM7fPYYxIIRg'),  # one link for L and H
        )
    }
)


@register_model
def crossformer_tiny(pretrained: bool = False, **kwargs) -> CrossFormer:
    """CrossFormer-T, 27.8 M parameters."""
    return build_model(CrossFormer, 'crossformer_tiny', pretrained, **kwargs)


@register_model
def crossformer_small(pretrained: bool = False, **kwargs) -> CrossFormer:
    """CrossFormer-S, 30.7 M parameters."""
    model_args = dict(embed_dims=(96, 192, 384, 768), depths=(2, 2, 6, 2))
    return build_model(CrossFormer, 'crossformer_small', pretrained, **dict(model_args, **kwargs))


@register_model
def crossformer_base(pretrained: bool = False, **kwargs) -> CrossFormer:
    """CrossFormer-B, 52.0 M parameters."""
    model_args = dict(embed_dims=(96, 192, 384, 768), depths=(2, 2, 18, 2))
    return build_model(CrossFormer, 'crossformer_base', pretrained, **dict(model_args, **kwargs))


@register_model
def crossformer_large(pretrained: bool = False, **kwargs) -> CrossFormer:
    """CrossFormer-L, 92.0 M parameters."""
    model_args = dict(embed_dims=(128, 256, 512, 1024), depths=(2, 2, 18, 2))
    return build_model(CrossFormer, 'crossformer_large', pretrained, **dict(model_args, **kwargs))


# Stage 3 attends to the whole map at 224, the others over shorter distances than CrossFormer's.
_PLUS_PLUS = dict(groups=(4, 4, 14, 7), intervals=(4, 2, 1, 1), cooling=True)


@register_model
def crossformer_pp_small(pretrained: bool = False, **kwargs) -> CrossFormer:
    """CrossFormer++-S, 23.3 M parameters."""
    model_args = dict(_PLUS_PLUS, embed_dims=(64, 128, 256, 512), depths=(2, 2, 18, 2))
    return build_model(CrossFormer, 'crossformer_pp_small', pretrained, **dict(model_args, **kwargs))


@register_model
def crossformer_pp_base(pretrained: bool = False, **kwargs) -> CrossFormer:
    """CrossFormer++-B, 52.0 M parameters."""
    model_args = dict(_PLUS_PLUS, embed_dims=(96, 192, 384, 768), depths=(2, 2, 18, 2))
    return build_model(CrossFormer, 'crossformer_pp_base', pretrained, **dict(model_args, **kwargs))


@register_model
def crossformer_pp_large(pretrained: bool = False, **kwargs) -> CrossFormer:
    """CrossFormer++-L, 92.0 M parameters."""
    model_args = dict(_PLUS_PLUS, embed_dims=(128, 256, 512, 1024), depths=(2, 2, 18, 2))
    return build_model(CrossFormer, 'crossformer_pp_large', pretrained, **dict(model_args, **kwargs))


@register_model
def crossformer_pp_huge(pretrained: bool = False, **kwargs) -> CrossFormer:
    """CrossFormer++-H, 96.0 M parameters."""
    model_args = dict(_PLUS_PLUS, embed_dims=(128, 256, 512, 1024), depths=(6, 6, 18, 2))
    return build_model(CrossFormer, 'crossformer_pp_huge', pretrained, **dict(model_args, **kwargs))
