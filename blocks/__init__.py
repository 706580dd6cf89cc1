"""Attention blocks and mixers as `nn.Module`s: one a file, channel count first."""

from .bi_level import BiLevelRoutingAttention
from .global_attention import GlobalAttention

__all__ = ['BiLevelRoutingAttention', 'GlobalAttention']
