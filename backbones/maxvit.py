"""MaxViT: a pyramid of multi-axis attention.

Papers:
- `MaxViT: Multi-Axis Vision Transformer` - https://arxiv.org/abs/2204.01697

Written from the paper, the facts of timm's conversion (https://github.com/huggingface/pytorch-image-models, Apache-2.0)
and its recorded numbers. Parameters have the names of timm's `maxvit_*_tf_*`, whose weights load as they are; those
came from the authors' TensorFlow checkpoints (https://github.com/google-research/maxvit, Apache-2.0).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)
from timm.layers import (
    BatchNormAct2d,
    LayerNorm2d,
    NormMlpClassifierHead,
    create_conv2d,
    resize_rel_pos_bias_table,
    to_2tuple,
)
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from attnzoo.blocks import GridAttention, MultiAxisAttention
from attnzoo.blocks.multi_axis import ACTIVATION, PadSame

from ._pyramid import Pyramid, Stage, check_stages, drop_path_rates
from ._timm import update_model_input_size
from ._weights import build_model, imagenet_cfg, register_top1, unwrap

__all__ = ['MaxViT']

PIXELS_PER_TOKEN = 32  # along an axis: of an image of the size that a model is built for, the last map is one window


class Stem(nn.Module):
    """Two 3x3 convolutions, the first of which halves the image. [B, C, H, W] -> [B, D, ceil(H / 2), ceil(W / 2)]."""

    def __init__(self, in_chans: int, dim: int, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.pad = PadSame(3)
        self.conv1 = nn.Conv2d(in_chans, dim, 3, stride=2, **dd)
        self.norm1 = BatchNormAct2d(dim, eps=1e-3, act_layer=ACTIVATION, **dd)
        self.conv2 = create_conv2d(dim, dim, 3, padding='same', bias=True, **dd)

    def forward(self, x: Tensor) -> Tensor:
        # The stages want channels-last memory, and the image is the smallest map to bring into it; by permutations,
        # because vmap knows no memory formats.
        x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        return self.conv2(self.norm1(self.conv1(self.pad(x))))


class MaxViT(Pyramid):
    """MaxViT, with any number of stages.

    Args:
        in_chans: Channels of the image.
        num_classes: Classes of the head, 0 for none.
        global_pool: Pooling of the head ('avg', 'max', ... or '' for none).
        img_size: Size of the images, a number or (height, width): it decides the default of `window_size`. Others
            work too.
        window_size: Tokens of a block and of a grid, a number or (height, width); None for a 32nd of `img_size`.
        stem_dim: Channels of the stem's map.
        embed_dims: Channels of each stage.
        depths: Blocks of each stage.
        head_dim: Channels of a head.
        drop_rate: Dropout before the classifier.
        attn_drop_rate: Dropout of attention weights.
        proj_drop_rate: Dropout of what attentions put out, and in MLPs.
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
        img_size: int | tuple[int, int] = 224,
        window_size: int | tuple[int, int] | None = None,
        stem_dim: int = 64,
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 5, 2),
        head_dim: int = 32,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        check_stages(embed_dims=embed_dims, depths=depths)
        window = _window(img_size, window_size)
        drops: dict[str, Any] = dict(attn_drop=attn_drop_rate, proj_drop=proj_drop_rate)
        stages = []
        rates = drop_path_rates(drop_path_rate, depths)
        dims = [stem_dim, *embed_dims]
        for i, (dim, depth) in enumerate(zip(embed_dims, depths, strict=True)):
            blocks = []
            for j in range(depth):
                dim_in, stride = (dims[i], 2) if j == 0 else (dim, 1)
                blocks.append(
                    MultiAxisAttention(dim_in, dim, stride, window, head_dim, drop_path=rates[i][j], **drops, **dd)
                )
            stages.append(Stage(nn.Identity(), blocks))
        super().__init__(
            Stem(in_chans, stem_dim, **dd),
            stages,
            norm=nn.Identity(),
            head=NormMlpClassifierHead(
                embed_dims[-1],
                num_classes,
                hidden_size=embed_dims[-1],
                pool_type=global_pool,
                drop_rate=drop_rate,
                norm_layer=partial(LayerNorm2d, eps=1e-5),
                **dd,
            ),
            channels=embed_dims,
            in_chans=in_chans,
            num_classes=num_classes,
            drop_rate=drop_rate,
            stem_channels=stem_dim,
        )
        self.img_size: tuple[int, int] = to_2tuple(img_size)

    @staticmethod
    def init_module(module: nn.Module) -> None:
        """As the authors: normally distributed weights, no biases."""
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith('relative_position_bias_table')}

    @torch.jit.ignore
    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, window_size: int | tuple[int, int] | None = None
    ) -> None:
        """Change the windows and grids, and resize their tables of position biases as timm does.

        Args:
            img_size: Size of the images, a number or (height, width); None to keep it.
            window_size: Tokens of a block and of a grid; None for a 32nd of the size.
        """
        size = self.img_size if img_size is None else to_2tuple(img_size)
        window = _window(size, window_size)
        for module in self.modules():
            if isinstance(module, GridAttention):
                module.set_window(window)
        self.img_size = size
        update_model_input_size(self, size, window_size=window)


def _window(img_size: int | tuple[int, int], window_size: int | tuple[int, int] | None) -> tuple[int, int]:
    if window_size is None:
        height, width = (n // PIXELS_PER_TOKEN for n in to_2tuple(img_size))
        if min(height, width) < 1:
            raise ValueError(f'img_size: expected at least {PIXELS_PER_TOKEN} pixels along each axis, got {img_size}')
    else:
        height, width = to_2tuple(window_size)
        if min(height, width) < 1:
            raise ValueError(f'window_size: expected at least one token along each axis, got {window_size}')
    return height, width


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """timm's MaxViT checkpoints, and ours, for a model of any size: tables of position biases are resized."""
    state_dict = unwrap(state_dict)
    for name, table in model.named_parameters():
        given = state_dict.get(name)
        if name.endswith('relative_position_bias_table') and given is not None and given.shape != table.shape:
            window = (table.shape[1] + 1) // 2, (table.shape[2] + 1) // 2
            shape = (given.shape[0], *table.shape[1:])
            state_dict[name] = resize_rel_pos_bias_table(given, window, shape)
    return state_dict


def _cfg(size: str, dataset: str, pixels: int) -> dict[str, Any]:
    """Of a checkpoint, which timm's hub has under timm's name."""
    larger = pixels > 224
    imagenet_statistics = dataset == 'in1k' and not larger
    return imagenet_cfg(
        hf_hub_id=f'timm/maxvit_{size}_tf_{pixels}.{dataset}',
        num_classes=21843 if dataset == 'in21k' else 1000,
        input_size=(3, pixels, pixels),
        pool_size=(pixels // PIXELS_PER_TOKEN,) * 2,
        crop_pct=1.0 if larger else 0.95,
        crop_mode='squash' if larger else 'center',
        mean=IMAGENET_DEFAULT_MEAN if imagenet_statistics else IMAGENET_INCEPTION_MEAN,
        std=IMAGENET_DEFAULT_STD if imagenet_statistics else IMAGENET_INCEPTION_STD,
        first_conv='stem.conv1',
        license='apache-2.0',
        paper_ids='arXiv:2204.01697',
        paper_name='MaxViT: Multi-Axis Vision Transformer',
        origin_url='https://github.com/google-research/maxvit',
    )


_IN1K = [('in1k', 224), ('in1k', 384), ('in1k', 512)]
_IN21K = [('in21k', 224), ('in21k_ft_in1k', 384), ('in21k_ft_in1k', 512)]
_PUBLISHED = {
    'tiny': _IN1K,
    'small': _IN1K,
    'base': _IN1K + _IN21K,
    'large': _IN1K + _IN21K,
    'xlarge': _IN21K,
}

default_cfgs = generate_default_cfgs(
    {
        f'maxvit_{size}_fused.{dataset}{"" if pixels == 224 else f"_{pixels}"}': _cfg(size, dataset, pixels)
        for size, checkpoints in _PUBLISHED.items()
        for dataset, pixels in checkpoints
    }
)
register_top1(
    {
        'maxvit_tiny_fused.in1k': 83.62,
        'maxvit_tiny_fused.in1k_384': 85.24,
        'maxvit_tiny_fused.in1k_512': 85.72,
        'maxvit_small_fused.in1k': 84.45,
        'maxvit_small_fused.in1k_384': 85.74,
        'maxvit_small_fused.in1k_512': 86.19,
        'maxvit_base_fused.in1k': 84.95,
        'maxvit_base_fused.in1k_384': 86.34,
        'maxvit_base_fused.in1k_512': 86.66,
        'maxvit_large_fused.in1k': 85.17,
        'maxvit_large_fused.in1k_384': 86.40,
        'maxvit_large_fused.in1k_512': 86.70,
    }
)


def _create(variant: str, pretrained: bool, **kwargs) -> MaxViT:
    return build_model(MaxViT, variant, pretrained, feature_cfg=dict(out_indices=(0, 1, 2, 3, 4)), **kwargs)


@register_model
def maxvit_tiny_fused(pretrained: bool = False, **kwargs) -> MaxViT:
    """MaxViT-T, 30.9 M parameters."""
    return _create('maxvit_tiny_fused', pretrained, **kwargs)


@register_model
def maxvit_small_fused(pretrained: bool = False, **kwargs) -> MaxViT:
    """MaxViT-S, 68.9 M parameters."""
    model_args = dict(embed_dims=(96, 192, 384, 768))
    return _create('maxvit_small_fused', pretrained, **dict(model_args, **kwargs))


@register_model
def maxvit_base_fused(pretrained: bool = False, **kwargs) -> MaxViT:
    """MaxViT-B, 119.5 M parameters."""
    model_args = dict(embed_dims=(96, 192, 384, 768), depths=(2, 6, 14, 2))
    return _create('maxvit_base_fused', pretrained, **dict(model_args, **kwargs))


@register_model
def maxvit_large_fused(pretrained: bool = False, **kwargs) -> MaxViT:
    """MaxViT-L, 211.8 M parameters."""
    model_args = dict(stem_dim=128, embed_dims=(128, 256, 512, 1024), depths=(2, 6, 14, 2))
    return _create('maxvit_large_fused', pretrained, **dict(model_args, **kwargs))


@register_model
def maxvit_xlarge_fused(pretrained: bool = False, **kwargs) -> MaxViT:
    """MaxViT-XL, 507 M parameters with the 21,843 classes of its published weights at 224, 475 M with 1000."""
    model_args = dict(stem_dim=192, embed_dims=(192, 384, 768, 1536), depths=(2, 6, 14, 2))
    return _create('maxvit_xlarge_fused', pretrained, **dict(model_args, **kwargs))
