"""Convolutional gated linear unit."""

from .op import conv_glu

__all__ = ['conv_glu']
