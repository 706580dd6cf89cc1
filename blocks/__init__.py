"""Attention blocks and mixers as `nn.Module`s: one a file, channel count first."""

from .aggregated import AggregatedAttention
from .bi_level import BiLevelRoutingAttention
from .channel_group import ChannelGroupAttention
from .conditional_position import ConditionalPositionEncoding
from .continuous_position_bias import ContinuousPositionBias
from .convolutional_glu import ConvolutionalGLU
from .cross_scale import CrossScaleEmbedding
from .dual_attention import DualAttention
from .dynamic_position_bias import DynamicPositionBias
from .global_attention import GlobalAttention
from .grid import BlockAttention, GridAttention
from .length_scaled import LengthScaledAttention
from .long_short import LongShortAttention
from .mlp import Mlp
from .multi_axis import MBConv, MultiAxisAttention
from .neighborhood import NeighborhoodAttention
from .window import WindowAttention, relative_position_index

__all__ = [
    'AggregatedAttention',
    'BiLevelRoutingAttention',
    'BlockAttention',
    'ChannelGroupAttention',
    'ConditionalPositionEncoding',
    'ContinuousPositionBias',
    'ConvolutionalGLU',
    'CrossScaleEmbedding',
    'DualAttention',
    'DynamicPositionBias',
    'GlobalAttention',
    'GridAttention',
    'LengthScaledAttention',
    'LongShortAttention',
    'MBConv',
    'Mlp',
    'MultiAxisAttention',
    'NeighborhoodAttention',
    'WindowAttention',
    'relative_position_index',
]
