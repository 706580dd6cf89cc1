"""DaViT: a pyramid of dual attention, within windows and between channels.

Papers:
- `DaViT: Dual Attention Vision Transformers` - https://arxiv.org/abs/2204.03645

Written from the paper and the recorded numbers of the authors' models (https://github.com/dingmyu/davit, MIT), whose
checkpoints load through `checkpoint_filter_fn`, as do timm's conversions of them.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.layers import LayerNorm2d, NormMlpClassifierHead
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from attnzoo.blocks import DualAttention
from attnzoo.blocks._common import pad_to

from ._pyramid import Pyramid, Stage, check_stages, drop_path_rates
from ._weights import build_model, imagenet_cfg, register_top1, rename_keys, unwrap

__all__ = ['DaViT']


class Stem(nn.Module):
    """A 7x7 convolution of stride 4, then a layer norm. [B, C, H, W] -> [B, D, ceil(H / 4), ceil(W / 4)]."""

    def __init__(self, in_chans: int, dim: int, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.conv = nn.Conv2d(in_chans, dim, 7, stride=4, padding=3, **dd)
        self.norm = nn.LayerNorm(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        # The convolution's own padding makes ceil(H / 4) rows of any H: the zeros that the authors' code adds to a
        # size that 4 does not divide are then seen by no position beyond those.
        return self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """A layer norm, then a 2x2 convolution of stride 2. [B, C, H, W] -> [B, D, ceil(H / 2), ceil(W / 2)]."""

    def __init__(self, in_dim: int, dim: int, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.norm = nn.LayerNorm(in_dim, **dd)
        self.conv = nn.Conv2d(in_dim, dim, 2, stride=2, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.permute(0, 2, 3, 1))
        # Behind the norm, as the authors do: the padding is zero and has no bias.
        x = pad_to(x, (x.shape[1] + x.shape[1] % 2, x.shape[2] + x.shape[2] % 2))
        return self.conv(x.permute(0, 3, 1, 2))


class DaViT(Pyramid):
    """DaViT, with any number of stages.

    Args:
        in_chans: Channels of the image.
        num_classes: Classes of the head, 0 for none.
        global_pool: Pooling of the head ('avg', 'max', ... or '' for none).
        embed_dims: Channels of each stage.
        depths: Pairs of blocks in each stage: one with window attention, one with channel group attention.
        head_dim: Channels of a head and of a channel group.
        window: Tokens of a window, a number or (height, width).
        mlp_ratio: MLP width over channels.
        qkv_bias: Whether the projections to q, k and v have a bias.
        drop_rate: Dropout before the classifier.
        attn_drop_rate: Dropout of the weights of window attention.
        proj_drop_rate: Dropout of what attentions put out, and in MLPs.
        drop_path_rate: Stochastic depth rate of the last pair of blocks; earlier ones grow to it linearly.

    Shape: [B, in_chans, H, W], H and W of 32 and more, rectangular and odd too -> [B, num_classes].

    Raises:
        ValueError: An argument is out of range or does not fit the others.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'avg',
        embed_dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (1, 1, 3, 1),
        head_dim: int = 32,
        window: int | tuple[int, int] = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        check_stages(embed_dims=embed_dims, depths=depths)
        drops = dict(attn_drop=attn_drop_rate, proj_drop=proj_drop_rate)
        stages = []
        rates = drop_path_rates(drop_path_rate, depths)
        for i, (dim, depth) in enumerate(zip(embed_dims, depths, strict=True)):
            if head_dim < 1 or dim % head_dim:
                raise ValueError(f'head_dim: expected a divisor of {dim} channels, got {head_dim}')
            downsample = nn.Identity() if i == 0 else Downsample(embed_dims[i - 1], dim, **dd)
            blocks = [
                DualAttention(dim, dim // head_dim, window, mlp_ratio, qkv_bias, rates[i][j], **drops, **dd)
                for j in range(depth)
            ]
            stages.append(Stage(downsample, blocks))
        super().__init__(
            Stem(in_chans, embed_dims[0], **dd),
            stages,
            norm=nn.Identity(),
            head=NormMlpClassifierHead(
                embed_dims[-1],
                num_classes,
                pool_type=global_pool,
                drop_rate=drop_rate,
                norm_layer=partial(LayerNorm2d, eps=1e-5),
                **dd,
            ),
            channels=embed_dims,
            in_chans=in_chans,
            num_classes=num_classes,
            drop_rate=drop_rate,
        )


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Official DaViT checkpoints and timm's -> ours; ours pass through."""
    block = {'0': 'spatial_block', '1': 'channel_block'}
    return rename_keys(
        unwrap(state_dict),
        (
            (r'^patch_embeds\.0\.proj\.', 'stem.conv.'),
            (r'^patch_embeds\.0\.', 'stem.'),
            (r'^patch_embeds\.(\d)\.proj\.', r'stages.\1.downsample.conv.'),
            (r'^patch_embeds\.(\d)\.', r'stages.\1.downsample.'),
            (r'^main_blocks\.(\d+)\.(\d+)\.', r'stages.\1.blocks.\2.'),
            (r'^(stages\.\d+\.blocks\.\d+)\.([01])\.', lambda m: f'{m[1]}.{block[m[2]]}.'),
            (r'\.cpe\.0\.', '.cpe1.'),
            (r'\.cpe\.1\.', '.cpe2.'),
            (r'^norms\.', 'head.norm.'),
            (r'^head\.(weight|bias)$', r'head.fc.\1'),
        ),
    )


_REPOSITORY = 'https://github.com/dingmyu/davit'

_cfg = partial(
    imagenet_cfg,
    crop_pct=0.9,  # of the authors' evaluation; timm's cfg of the same weights has 0.95
    first_conv='stem.conv',
    license='mit',
    paper_ids='arXiv:2204.03645',
    paper_name='DaViT: Dual Attention Vision Transformers',
    origin_url=_REPOSITORY,
)

default_cfgs = generate_default_cfgs(
    {
        'davit_tiny_fused.in1k': _cfg(hf_hub_id='timm/davit_tiny.msft_in1k'),
        'davit_small_fused.in1k': _cfg(hf_hub_id='timm/davit_small.msft_in1k'),
        'davit_base_fused.in1k': _cfg(hf_hub_id='timm/davit_base.msft_in1k'),
        # Never published.
        'davit_large_fused': _cfg(),
        'davit_huge_fused': _cfg(),
        'davit_giant_fused': _cfg(),
    }
)
register_top1({'davit_tiny_fused.in1k': 82.8, 'davit_small_fused.in1k': 84.2, 'davit_base_fused.in1k': 84.6})


@register_model
def davit_tiny_fused(pretrained: bool = False, **kwargs) -> DaViT:
    """DaViT-T, 28.4 M parameters."""
    return build_model(DaViT, 'davit_tiny_fused', pretrained, **kwargs)


@register_model
def davit_small_fused(pretrained: bool = False, **kwargs) -> DaViT:
    """DaViT-S, 49.7 M parameters."""
    model_args = dict(depths=(1, 1, 9, 1))
    return build_model(DaViT, 'davit_small_fused', pretrained, **dict(model_args, **kwargs))


@register_model
def davit_base_fused(pretrained: bool = False, **kwargs) -> DaViT:
    """DaViT-B, 88.0 M parameters."""
    model_args = dict(depths=(1, 1, 9, 1), embed_dims=(128, 256, 512, 1024))
    return build_model(DaViT, 'davit_base_fused', pretrained, **dict(model_args, **kwargs))


@register_model
def davit_large_fused(pretrained: bool = False, **kwargs) -> DaViT:
    """DaViT-L, 196.8 M parameters."""
    model_args = dict(depths=(1, 1, 9, 1), embed_dims=(192, 384, 768, 1536))
    return build_model(DaViT, 'davit_large_fused', pretrained, **dict(model_args, **kwargs))


@register_model
def davit_huge_fused(pretrained: bool = False, **kwargs) -> DaViT:
    """DaViT-H, 348.9 M parameters."""
    model_args = dict(depths=(1, 1, 9, 1), embed_dims=(256, 512, 1024, 2048))
    return build_model(DaViT, 'davit_huge_fused', pretrained, **dict(model_args, **kwargs))


@register_model
def davit_giant_fused(pretrained: bool = False, **kwargs) -> DaViT:
    """DaViT-G, 1.4 G parameters."""
    model_args = dict(depths=(1, 1, 12, 3), embed_dims=(384, 768, 1536, 3072))
    return build_model(DaViT, 'davit_giant_fused', pretrained, **dict(model_args, **kwargs))
