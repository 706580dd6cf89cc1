"""Attention to the neighbours of each position and to a pooled map, under one softmax."""

from .op import aggregated_attention

__all__ = ['aggregated_attention']
