"""Attention blocks and mixers as `nn.Module`s: one a file, channel count first."""

from timm.layers import register_notrace_function

from attnzoo.kernels import PUBLIC_FUNCTIONS

from .bi_level import BiLevelRoutingAttention
from .global_attention import GlobalAttention

__all__ = ['BiLevelRoutingAttention', 'GlobalAttention']

# The kernels know nothing of timm; here is where its tracer learns not to look inside them.
for function in PUBLIC_FUNCTIONS:
    register_notrace_function(function)
