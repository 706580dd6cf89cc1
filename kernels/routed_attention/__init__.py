"""Bi-level routing attention: every query region attends to the few key regions that its route names."""

from .op import route_regions, routed_attention

__all__ = ['route_regions', 'routed_attention']
