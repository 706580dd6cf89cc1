"""Every block, small: what `tests/blocks/test_all_blocks.py` asks of all of them. A block joins with its line.

Its channels are multiples of nothing, where it lets them.
"""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attnzoo.blocks import (
    AggregatedAttention,
    BiLevelRoutingAttention,
    BlockAttention,
    ChannelGroupAttention,
    ConditionalPositionEncoding,
    ContinuousPositionBias,
    ConvolutionalGLU,
    CrossScaleEmbedding,
    DualAttention,
    GlobalAttention,
    GridAttention,
    LengthScaledAttention,
    LongShortAttention,
    MBConv,
    Mlp,
    MultiAxisAttention,
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
    """

    make: Callable[..., nn.Module]
    channels: int = CHANNELS
    channels_first: bool = False
    least: tuple[int, int] = (1, 1)
    size: tuple[int, int] = (7, 9)
    by_size: bool = False

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
        return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1))

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
        lambda **settings: with_small_bias(AggregatedAttention, CHANNELS, HEADS, (6, 8), pool_ratio=2, **settings),
        size=(6, 8),  # the older ONNX exporter pools only what divides
    ),
    'BiLevelRoutingAttention': Block(
        lambda **settings: BiLevelRoutingAttention(CHANNELS, HEADS, regions=3, top_k=1, **settings)
    ),
    'BiLevelRoutingAttention, dense, masked': Block(
        lambda **settings: BiLevelRoutingAttention(
            CHANNELS, HEADS, regions=3, top_k=4, padding='projection', mask_padding=True, **settings
        )
    ),
    'BiLevelRoutingAttention, soft': Block(
        lambda **settings: BiLevelRoutingAttention(CHANNELS, HEADS, regions=3, soft_routing=True, **settings)
    ),
    'BlockAttention': Block(lambda **settings: BlockAttention(CHANNELS, HEADS, (3, 4), **settings)),
    'ChannelGroupAttention': Block(lambda **settings: ChannelGroupAttention(CHANNELS, HEADS, **settings)),
    'ConditionalPositionEncoding': Block(lambda **settings: ConditionalPositionEncoding(CHANNELS, **settings)),
    'ConvolutionalGLU': Block(lambda **settings: ConvolutionalGLU(CHANNELS, **settings)),
    'CrossScaleEmbedding': Block(lambda **settings: CrossScaleEmbedding(CHANNELS, 16, **settings), least=(4, 4)),
    'DualAttention': Block(lambda **settings: DualAttention(CHANNELS, HEADS, window=(3, 4), **settings)),
    'GlobalAttention': Block(lambda **settings: GlobalAttention(CHANNELS, HEADS, **settings)),
    'GridAttention': Block(lambda **settings: GridAttention(CHANNELS, HEADS, (3, 4), **settings)),
    'LengthScaledAttention': Block(
        lambda **settings: with_small_bias(LengthScaledAttention, CHANNELS, HEADS, bias_size=(4, 3), **settings)
    ),
    'LongShortAttention': Block(
        lambda **settings: LongShortAttention(99, HEADS, group=3, interval=2, **settings),
        channels=99,  # the norms of its position bias see a sixteenth of them
    ),
    'MBConv': Block(lambda **settings: MBConv(CHANNELS, 28, 2, **settings), channels_first=True),
    'Mlp': Block(lambda **settings: Mlp(CHANNELS, 2 * CHANNELS, **settings)),
    'MultiAxisAttention': Block(
        lambda **settings: MultiAxisAttention(CHANNELS, 28, 2, window=3, head_dim=7, **settings)
    ),
    'WindowAttention': Block(lambda **settings: WindowAttention(CHANNELS, HEADS, (3, 4), shift=(1, 2), **settings)),
    'WindowAttention, masked, padded after the shift': Block(
        lambda **settings: WindowAttention(
            CHANNELS, HEADS, (3, 4), shift=1, mask_padding=True, pad_after_shift=True, **settings
        )
    ),
}

# Modules that take the size of a map, not a map: each is tested inside the block that uses it.
INSIDE: dict[str, str] = {
    'ContinuousPositionBias': 'AggregatedAttention',
    'DynamicPositionBias': 'LongShortAttention',
}
