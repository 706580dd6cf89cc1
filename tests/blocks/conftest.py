"""What the tests of several blocks share."""

from unittest.mock import patch

import pytest
from timm.layers import Mlp
from torch import nn

from attnzoo.blocks import _parts


@pytest.fixture
def small_parts():
    """Every hidden layer counts as large, and a part of it is three rows of 16 channels."""
    with patch.object(_parts, 'LARGE_BYTES', 1), patch.object(_parts, 'PART_BYTES', 3 * 16 * 4):
        yield


class TransformerBlock(nn.Module):
    """The block that Swin and CrossFormer put around their attention: norms, residuals, MLP; takes [B, H * W, C]."""

    def __init__(self, dim, attn, size):
        super().__init__()
        self.size = size
        self.norm1, self.attn = nn.LayerNorm(dim), attn
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim, 4 * dim)

    def forward(self, x):
        x = x + self.attn(self.norm1(x).unflatten(1, self.size)).flatten(1, 2)
        return x + self.mlp(self.norm2(x))


@pytest.fixture
def transformer_block():
    return TransformerBlock
