"""Attention blocks and mixers as `nn.Module`s: one a file, channel count first."""

from .aggregated import AggregatedAttention
from .bi_level import BiLevelRoutingAttention
from .bottleneck import BottleneckAttention
from .cbam import CBAM
from .channel_group import ChannelGroupAttention
from .conditional_position import ConditionalPositionEncoding
from .continuous_position_bias import ContinuousPositionBias
from .convolutional_glu import ConvolutionalGLU
from .cross_scale import CrossScaleEmbedding
from .dual_attention import DualAttention
from .dynamic_position_bias import DynamicPositionBias
from .efficient_channel import EfficientChannelAttention
from .efficient_local import EfficientLocalAttention
from .focal_modulation import FocalModulation
from .frequency_channel import FrequencyChannelAttention
from .global_attention import GlobalAttention
from .grid import BlockAttention, GridAttention
from .halo import HaloAttention
from .large_kernel import LargeKernelAttention, VanAttention
from .length_scaled import LengthScaledAttention
from .long_short import LongShortAttention
from .mlp import Mlp
from .multi_axis import MBConv, MultiAxisAttention
from .neighborhood import NeighborhoodAttention
from .squeeze_excite import SqueezeExcite
from .triplet import TripletAttention
from .window import WindowAttention, relative_position_index

__all__ = [
    'CBAM',
    'AggregatedAttention',
    'BiLevelRoutingAttention',
    'BlockAttention',
    'BottleneckAttention',
    'ChannelGroupAttention',
    'ConditionalPositionEncoding',
    'ContinuousPositionBias',
    'ConvolutionalGLU',
    'CrossScaleEmbedding',
    'DualAttention',
    'DynamicPositionBias',
    'EfficientChannelAttention',
    'EfficientLocalAttention',
    'FocalModulation',
    'FrequencyChannelAttention',
    'GlobalAttention',
    'GridAttention',
    'HaloAttention',
    'LargeKernelAttention',
    'LengthScaledAttention',
    'LongShortAttention',
    'MBConv',
    'Mlp',
    'MultiAxisAttention',
    'NeighborhoodAttention',
    'SqueezeExcite',
    'TripletAttention',
    'VanAttention',
    'WindowAttention',
    'relative_position_index',
]
