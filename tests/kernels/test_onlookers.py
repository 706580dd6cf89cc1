"""Ops under everything that may look on. An op joins with a module around its call, for each way that it can take."""

import pytest
import torch
from onlookers import over_all_onlookers
from torch import Tensor, nn

from attnzoo.kernels import full_attention, route_regions, routed_attention, window_attention
from attnzoo.kernels.routed_attention import reference as routed
from attnzoo.kernels.window_attention import eager_cpu

HEADS, CHANNELS = 2, 8


class ShiftedWindows(nn.Module):
    """Packed, on a map that does not divide, with a learned table and value of the padding."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(49, HEADS))
        self.padding = nn.Parameter(torch.randn(3 * CHANNELS))
        self.register_buffer('index', torch.randint(49, (16, 16)))

    def forward(self, qkv: Tensor) -> Tensor:
        return window_attention(
            qkv,
            shift=(1, 2),
            bias=self.table,
            bias_index=self.index,
            padding=self.padding,
            num_heads=2,
            window=(4, 4),
        )


class ShiftedWindowsThatDivide(nn.Module):
    """The only ones whose rows go straight to their windows."""

    def forward(self, qkv: Tensor) -> Tensor:
        return window_attention(qkv, shift=(1, 2), num_heads=2, window=(3, 4))


class Grids(nn.Module):
    """Cosine attention of separate maps, where padding is masked."""

    def __init__(self):
        super().__init__()
        self.cosine_scale = nn.Parameter(torch.randn(HEADS).exp())

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return window_attention(q, k, v, partition='grid', cosine_scale=self.cosine_scale, num_heads=2, window=(4, 4))


class SharedQueries(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return window_attention(q, k, v, num_heads=2, window=(3, 4))


class Routes(nn.Module):
    """Regions of 3 x 4 tokens; from six of them on, routes of two are few enough to be gathered."""

    def __init__(self, rows: int, masked: bool = False, soft: bool = False):
        super().__init__()
        self.rows = rows
        self.soft = soft
        self.masked = masked

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        valid = (q.shape[1] - 1, q.shape[2] - 2) if self.masked else None
        routes, weights = route_regions(q, k, (self.rows, 4), 2, None, valid)
        return routed_attention(q, k, v, routes, 2, (self.rows, 4), None, weights if self.soft else None, valid)


class Full(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return full_attention(q, k, v, scale=0.5)


def maps(*shape: int) -> tuple[Tensor, ...]:
    return tuple(torch.randn(shape) for _ in range(3))


OPS = {
    'windows, shifted, padded': lambda: (ShiftedWindows(), torch.randn(3, 10, 11, 3 * CHANNELS)),
    'windows, shifted': lambda: (ShiftedWindowsThatDivide(), torch.randn(3, 9, 12, 3 * CHANNELS)),
    'grids': lambda: (Grids(), *maps(3, 9, 10, CHANNELS)),
    'windows, shared queries': lambda: (
        SharedQueries(),
        torch.randn(3, 3, 4, CHANNELS),
        *maps(3, 6, 8, CHANNELS)[:2],
    ),
    'routes, dense': lambda: (Routes(2), *maps(3, 6, 16, CHANNELS)),
    'routes, dense, masked': lambda: (Routes(2, masked=True), *maps(3, 6, 16, CHANNELS)),
    'routes, gathered': lambda: (Routes(3), *maps(3, 9, 16, CHANNELS)),
    'routes, gathered, masked, soft': lambda: (Routes(3, masked=True, soft=True), *maps(3, 9, 16, CHANNELS)),
    'full': lambda: (Full(), *maps(3, HEADS, 5, CHANNELS)),
}


@pytest.mark.parametrize('op', OPS)
@over_all_onlookers
def test_does_the_same_whoever_looks_on(op, looks_on, monkeypatch):
    # As many parts and steps as there can be, as on maps of some size.
    monkeypatch.setattr(eager_cpu, 'PART_BYTES', 1)
    monkeypatch.setattr(routed, '_STEP_BYTES', 1)
    torch.manual_seed(0)
    module, *inputs = OPS[op]()
    looks_on(module.eval(), *inputs)
