"""Gates of rows and of columns for each channel of a map."""

from .op import ela_gate

__all__ = ['ela_gate']
