"""Multi-scale deformable attention: a few points of several feature maps for each query."""

from .op import deformable_attention

__all__ = ['deformable_attention']
