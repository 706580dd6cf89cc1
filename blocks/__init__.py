"""Attention blocks and mixers as `nn.Module`s: one a file, channel count first."""

from timm.layers import register_notrace_function

from attnzoo.kernels import PUBLIC_FUNCTIONS

from .bi_level import BiLevelRoutingAttention
from .cross_scale import CrossScaleEmbedding
from .dynamic_position_bias import DynamicPositionBias
from .global_attention import GlobalAttention
from .grid import BlockAttention, GridAttention
from .long_short import LongShortAttention
from .multi_axis import MBConv, MultiAxisAttention
from .window import WindowAttention

__all__ = [
    'BiLevelRoutingAttention',
    'BlockAttention',
    'CrossScaleEmbedding',
    'DynamicPositionBias',
    'GlobalAttention',
    'GridAttention',
    'LongShortAttention',
    'MBConv',
    'MultiAxisAttention',
    'WindowAttention',
]

# The kernels know nothing of timm; here is where its tracer learns not to look inside them.
for function in PUBLIC_FUNCTIONS:
    register_notrace_function(function)
