"""A gate for each channel of a map."""

from .op import channel_gate

__all__ = ['channel_gate']
