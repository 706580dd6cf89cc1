"""A gate for each channel of a map, then one for each position."""

from .op import cbam_gate

__all__ = ['cbam_gate']
