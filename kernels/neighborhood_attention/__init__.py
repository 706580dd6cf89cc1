"""Attention of each position of a map to those around it, fused, and as a pair of scores and weighted values."""

from .op import neighborhood_attention, neighborhood_av, neighborhood_qk

__all__ = ['neighborhood_attention', 'neighborhood_av', 'neighborhood_qk']
