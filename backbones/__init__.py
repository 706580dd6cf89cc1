"""Backbones registered with timm: one family a file."""

from ._weights import (
    WeightsNotFoundError,
    checkpoint_filter,
    checkpoint_folder,
    find_weights,
    official_file,
    placed_file,
    published_top1,
)
from .biformer import BiFormer
from .crossformer import CrossFormer
from .davit import DaViT
from .maxvit import MaxViT
from .resnet import AttentionResNet
from .transnext import TransNeXt

__all__ = [
    'AttentionResNet',
    'BiFormer',
    'CrossFormer',
    'DaViT',
    'MaxViT',
    'TransNeXt',
    'WeightsNotFoundError',
    'checkpoint_filter',
    'checkpoint_folder',
    'find_weights',
    'official_file',
    'placed_file',
    'published_top1',
]
