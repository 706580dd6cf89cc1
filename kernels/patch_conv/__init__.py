"""Convolution of an image into overlapping patches."""

from .op import patch_conv

__all__ = ['patch_conv']
