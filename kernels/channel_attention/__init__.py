"""Attention between the channels of each head, over all positions of a map."""

from .op import channel_attention

__all__ = ['channel_attention']
