"""Focal modulation: queries times a context that is gathered level by level."""

from .op import focal_modulate

__all__ = ['focal_modulate']
