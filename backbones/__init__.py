"""Backbones registered with timm: one family a file."""

from ._weights import WeightsNotFoundError, checkpoint_filter, checkpoint_folder, official_file, placed_file
from .biformer import BiFormer
from .crossformer import CrossFormer
from .maxvit import MaxViT

__all__ = [
    'BiFormer',
    'CrossFormer',
    'MaxViT',
    'WeightsNotFoundError',
    'checkpoint_filter',
    'checkpoint_folder',
    'official_file',
    'placed_file',
]
