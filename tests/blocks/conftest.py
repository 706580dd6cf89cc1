"""What the tests of several blocks share."""

from unittest.mock import patch

import pytest
import torch
from onlookers import to_fx
from timm.layers import Mlp
from torch import nn

from attnzoo.blocks import (
    BiLevelRoutingAttention,
    BlockAttention,
    GlobalAttention,
    GridAttention,
    LongShortAttention,
    MultiAxisAttention,
    WindowAttention,
    _parts,
)

# Attention blocks of 16 channels, for maps of any size; each takes `attn_drop` and `proj_drop`.
ATTENTION = {
    'windows': lambda **drop: WindowAttention(16, 2, (3, 4), shift=(1, 2), **drop),
    'windows, masked, padded after the shift': lambda **drop: WindowAttention(
        16, 2, (3, 4), shift=1, mask_padding=True, pad_after_shift=True, **drop
    ),
    'blocks': lambda **drop: BlockAttention(16, 2, (3, 4), **drop),
    'grid': lambda **drop: GridAttention(16, 2, (3, 4), **drop),
    'long distance': lambda **drop: LongShortAttention(16, 2, group=3, interval=2, **drop),
    'routes': lambda **drop: BiLevelRoutingAttention(16, 2, regions=3, top_k=1, **drop),
    'routes, dense, masked': lambda **drop: BiLevelRoutingAttention(
        16, 2, regions=3, top_k=4, padding='projection', mask_padding=True, **drop
    ),
    'routes, soft': lambda **drop: BiLevelRoutingAttention(16, 2, regions=3, soft_routing=True, **drop),
    'global': lambda **drop: GlobalAttention(16, 2, **drop),
    'multi-axis': lambda **drop: MultiAxisAttention(16, 32, 2, window=3, head_dim=8, **drop),
}


@pytest.fixture(params=ATTENTION)
def make_attention(request):
    """Makes one of the attention blocks, with dropout or without."""
    return ATTENTION[request.param]


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


@pytest.fixture(params=['fx', 'script', 'compile', 'export'])
def assert_same_in_a_graph(request):
    """Turns a module into a graph and compares it with the module on all inputs; only an export is for one shape."""

    def check(module, *inputs):
        torch.compiler.reset()
        module.eval()
        whole = {
            'fx': to_fx,
            'script': torch.jit.script,
            'compile': lambda module: torch.compile(module, fullgraph=True, backend='aot_eager'),
        }.get(request.param)
        graph = whole(module) if whole else None
        for x in inputs:
            if whole is None:
                graph = torch.export.export(module, (x,)).module()
            torch.testing.assert_close(graph(x), module(x))

    return check


@pytest.fixture
def assert_restored():
    """A module that is made on the meta device runs there, and its derived tables come back after `to_empty`."""

    def check(make, *shape):
        expected = {name: buffer.clone() for name, buffer in make().named_buffers()}
        module = make(device='meta')
        assert all(tensor.is_meta for tensor in [*module.parameters(), *module.buffers()])
        assert module(torch.empty(shape, device='meta')).is_meta

        module.to_empty(device='cpu')
        for buffer in module.buffers():
            buffer.fill_(-1)
        for part in module.modules():
            if hasattr(part, 'init_non_persistent_buffers'):
                part.init_non_persistent_buffers()
        saved = module.state_dict()
        restored = {name: buffer for name, buffer in module.named_buffers() if name not in saved}
        assert restored and all(torch.equal(buffer, expected[name]) for name, buffer in restored.items())

    return check
