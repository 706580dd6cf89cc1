"""Every block, small: what `tests/blocks/test_all_blocks.py` asks of all of them. A block joins with its line.

Its channels are multiples of nothing, where it lets them.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attnzoo.blocks import (
    CBAM,
    AggregatedAttention,
    BiLevelRoutingAttention,
    BlockAttention,
    BottleneckAttention,
    ChannelGroupAttention,
    ConditionalPositionEncoding,
    ContinuousPositionBias,
    ConvolutionalGLU,
    CrossScaleEmbedding,
    DualAttention,
    EfficientChannelAttention,
    EfficientLocalAttention,
    FocalModulation,
    FrequencyChannelAttention,
    GlobalAttention,
    GridAttention,
    HaloAttention,
    LargeKernelAttention,
    LengthScaledAttention,
    LongShortAttention,
    MBConv,
    Mlp,
    MultiAxisAttention,
    NeighborhoodAttention,
    SqueezeExcite,
    TripletAttention,
    VanAttention,
    WindowAttention,
)

CHANNELS, HEADS = 21, 3


class Block(NamedTuple):
    """How a small block is made, and what it takes.

    Fields:
        make: Makes the module; takes `device`, `dtype` and what else the block has as keyword arguments.
        channels: Channels of its maps.
        channels_first: Its maps are [B, C, H, W], not [B, H, W, C].
        least: Height and width of the smallest map that it takes.
        size: Height and width of the usual map.
        by_size: `make` takes the map's size (H, W) first, because the module is for maps of that size alone.
        maps_only: It refuses what is no map; else it takes any tensor of so many channels.
        continuous: Rounding changes its result by little; it does not choose.
        not_by: Onlookers that cannot take it, whatever we do.
    """

    make: Callable[..., nn.Module]
    channels: int = CHANNELS
    channels_first: bool = False
    least: tuple[int, int] = (1, 1)
    size: tuple[int, int] = (7, 9)
    by_size: bool = False
    maps_only: bool = True
    continuous: bool = True
    not_by: tuple[str, ...] = ()

    def new(self, size: tuple[int, int] | None = None, **settings) -> nn.Module:
        """The module in eval mode. No parameter is zero or one, so that each has a part in the result."""
        torch.manual_seed(0)
        module = self.make(size or self.size, **settings) if self.by_size else self.make(**settings)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return module.eval()

    def map(self, size: tuple[int, int] | None = None, batch: int = 2) -> Tensor:
        """A map in the block's layout, contiguous."""
        height, width = size or self.size
        shape = (self.channels, height, width) if self.channels_first else (height, width, self.channels)
        return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(2))

    def takes(self, argument: str) -> bool:
        """Whether the block's constructor has an argument of that name."""
        return argument in inspect.signature(type(self.new(device='meta'))).parameters


def with_small_bias(kind: type, *arguments, device=None, dtype=None, **settings) -> nn.Module:
    """With few hidden channels in the MLP of position biases, which else has most of the products of a small block."""
    module = kind(*arguments, device=device, dtype=dtype, **settings)
    bias = module.cpb
    module.cpb = ContinuousPositionBias(
        HEADS, bias.pretrain_size, bias.pool_ratio, 4, bias.bias_size, device=device, dtype=dtype
    )
    return module


# A name is that of the class and, behind a comma, of a way to use it.
BLOCKS: dict[str, Block] = {
    'AggregatedAttention': Block(
        partial(with_small_bias, AggregatedAttention, CHANNELS, HEADS, (6, 8), pool_ratio=2),
        size=(6, 8),  # the older ONNX exporter pools only what divides
    ),
    'BiLevelRoutingAttention': Block(
        partial(BiLevelRoutingAttention, CHANNELS, HEADS, regions=3, top_k=1), continuous=False
    ),
    'BiLevelRoutingAttention, dense, masked': Block(
        partial(BiLevelRoutingAttention, CHANNELS, HEADS, regions=3, top_k=4, padding='projection', mask_padding=True),
        continuous=False,
    ),
    'BiLevelRoutingAttention, soft': Block(
        partial(BiLevelRoutingAttention, CHANNELS, HEADS, regions=3, soft_routing=True), continuous=False
    ),
    'BiLevelRoutingAttention, pooled': Block(
        partial(BiLevelRoutingAttention, CHANNELS, HEADS, regions=3, top_k=2, kv_pool=2),
        continuous=False,
        not_by=('onnx_by_tracing',),  # it knows no adaptive pooling of a map whose size it has lost
    ),
    'BlockAttention': Block(partial(BlockAttention, CHANNELS, HEADS, (3, 4))),
    'BottleneckAttention': Block(
        lambda size, **settings: BottleneckAttention(CHANNELS, size, num_heads=HEADS, **settings),
        channels_first=True,
        by_size=True,
    ),
    'BottleneckAttention, averaged, of other widths': Block(
        lambda size, **settings: BottleneckAttention(
            CHANNELS, size, 15, 2, HEADS, head_dim=4, qkv_bias=True, scale_position=True, **settings
        ),
        channels_first=True,
        by_size=True,
    ),
    'CBAM': Block(partial(CBAM, CHANNELS, reduction_ratio=4, kernel_size=3), channels_first=True),
    'CBAM, all pools, channels only': Block(
        partial(CBAM, CHANNELS, 4, ('avg', 'max', 'lp', 'lse'), no_spatial=True), channels_first=True
    ),
    'ChannelGroupAttention': Block(partial(ChannelGroupAttention, CHANNELS, HEADS)),
    'ConditionalPositionEncoding': Block(partial(ConditionalPositionEncoding, CHANNELS)),
    'ConvolutionalGLU': Block(partial(ConvolutionalGLU, CHANNELS)),
    'CrossScaleEmbedding': Block(partial(CrossScaleEmbedding, CHANNELS, 16), least=(4, 4)),
    'CrossScaleEmbedding, between stages': Block(
        partial(CrossScaleEmbedding, CHANNELS, 42, (2, 4), stride=2, norm_first=True), least=(2, 2)
    ),
    'DualAttention': Block(partial(DualAttention, CHANNELS, HEADS, window=(3, 4))),
    'EfficientChannelAttention': Block(partial(EfficientChannelAttention, CHANNELS), channels_first=True),
    'EfficientLocalAttention': Block(partial(EfficientLocalAttention, CHANNELS, num_groups=3), channels_first=True),
    'EfficientLocalAttention, separate': Block(
        partial(EfficientLocalAttention, CHANNELS, groups=7, num_groups=1, separate=True), channels_first=True
    ),
    'FocalModulation': Block(partial(FocalModulation, CHANNELS)),
    'FocalModulation, normed': Block(
        partial(FocalModulation, CHANNELS, focal_level=3, bias=False, post_norm=True, normalize_modulator=True)
    ),
    'FrequencyChannelAttention': Block(
        partial(FrequencyChannelAttention, 22, 7, 9, reduction=4, freq_sel_method='top2'),
        channels=22,  # two frequencies divide them
        channels_first=True,
    ),
    'GlobalAttention': Block(partial(GlobalAttention, CHANNELS, HEADS)),
    'GridAttention': Block(partial(GridAttention, CHANNELS, HEADS, (3, 4))),
    'HaloAttention': Block(partial(HaloAttention, CHANNELS, num_heads=HEADS, block=4, halo=2), channels_first=True),
    'HaloAttention, strided, masked': Block(
        partial(HaloAttention, CHANNELS, 15, 2, HEADS, head_dim=4, block=4, halo=1, qkv_bias=True, mask_padding=True),
        channels_first=True,
    ),
    'HaloAttention, averaged': Block(
        partial(HaloAttention, CHANNELS, 15, 2, HEADS, block=3, halo=1, qk_ratio=0.5, scale_position=True),
        channels_first=True,
    ),
    'LargeKernelAttention': Block(partial(LargeKernelAttention, CHANNELS)),
    'LengthScaledAttention': Block(partial(with_small_bias, LengthScaledAttention, CHANNELS, HEADS, bias_size=(4, 3))),
    'LengthScaledAttention, biases as they are': Block(
        partial(with_small_bias, LengthScaledAttention, CHANNELS, HEADS)
    ),
    'LongShortAttention': Block(
        partial(LongShortAttention, 99, HEADS, group=3, interval=2),
        channels=99,  # the norms of its position bias see a sixteenth of them
    ),
    'LongShortAttention, short': Block(partial(LongShortAttention, 99, HEADS, group=3), channels=99),
    'MBConv': Block(partial(MBConv, CHANNELS, 28, 2), channels_first=True),
    'MBConv, without stride': Block(partial(MBConv, CHANNELS, CHANNELS), channels_first=True),
    'Mlp': Block(partial(Mlp, CHANNELS, 2 * CHANNELS), maps_only=False),
    'MultiAxisAttention': Block(partial(MultiAxisAttention, CHANNELS, 28, 2, window=3, head_dim=7)),
    'MultiAxisAttention, without stride': Block(partial(MultiAxisAttention, CHANNELS, window=(3, 4), head_dim=7)),
    'NeighborhoodAttention': Block(partial(NeighborhoodAttention, CHANNELS, HEADS, kernel=3)),
    'NeighborhoodAttention, dilated, causal': Block(
        partial(NeighborhoodAttention, CHANNELS, HEADS, kernel=(3, 5), dilation=(2, 1), is_causal=(False, True))
    ),
    'NeighborhoodAttention, on padded maps': Block(
        partial(NeighborhoodAttention, CHANNELS, HEADS, kernel=5, dilation=(2, 1), position_bias=False)
    ),
    'NeighborhoodAttention, on masked maps': Block(
        partial(NeighborhoodAttention, CHANNELS, HEADS, kernel=5, dilation=(2, 1), mask_padding=True, qkv_bias=False)
    ),
    'SqueezeExcite': Block(partial(SqueezeExcite, CHANNELS), channels_first=True),
    'SqueezeExcite, maximum, norm': Block(
        partial(SqueezeExcite, CHANNELS, add_maxpool=True, norm_layer=nn.BatchNorm2d, act_layer='elu'),
        channels_first=True,
    ),
    'TripletAttention': Block(partial(TripletAttention, CHANNELS, kernel_size=3), channels_first=True),
    'TripletAttention, two gates': Block(partial(TripletAttention, CHANNELS, no_spatial=True), channels_first=True),
    'VanAttention': Block(partial(VanAttention, CHANNELS)),
    'WindowAttention': Block(partial(WindowAttention, CHANNELS, HEADS, (3, 4), shift=(1, 2))),
    'WindowAttention, padded after the shift': Block(
        partial(WindowAttention, CHANNELS, HEADS, (3, 4), shift=1, pad_after_shift=True)
    ),
    'WindowAttention, without biases': Block(
        partial(WindowAttention, CHANNELS, HEADS, (3, 4), position_bias=False, qkv_bias=False)
    ),
    'WindowAttention, masked, padded after the shift': Block(
        partial(WindowAttention, CHANNELS, HEADS, (3, 4), shift=1, mask_padding=True, pad_after_shift=True)
    ),
}

# Modules that take the size of a map, not a map: each is tested inside the block that uses it.
INSIDE: dict[str, str] = {
    'ContinuousPositionBias': 'AggregatedAttention',
    'DynamicPositionBias': 'LongShortAttention',
}
