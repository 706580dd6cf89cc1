"""Attention of blocks of a map to themselves and the halo around them, with relative positions."""

from .op import halo_attention

__all__ = ['halo_attention']
