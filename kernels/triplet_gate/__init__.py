"""Gates of all three pairs of a map's axes."""

from .op import triplet_gate

__all__ = ['triplet_gate']
