"""Attention within the windows of a feature map: adjacent, shifted, dilated or spread as a grid."""

from .op import window_attention

__all__ = ['window_attention']
