"""Depthwise convolution of a channels-last map."""

from .op import depthwise_conv

__all__ = ['depthwise_conv']
