"""The shapes that kernels are compiled, counted and timed at are what the blocks call."""

import inspect

import pytest
import torch

from attnzoo import blocks
from attnzoo.blocks import grid, long_short, window
from attnzoo.kernels import window_attention
from attnzoo.kernels.window_attention.cases import BLOCK_CASES

META = {'device': 'meta'}
BLOCKS = {
    'Swin-T stage 1': (lambda: blocks.WindowAttention(96, 3, 7, **META), 56),
    'Swin-T stage 1, shifted': (lambda: blocks.WindowAttention(96, 3, 7, 3, **META), 56),
    'Swin-T stage 2': (lambda: blocks.WindowAttention(192, 6, 7, **META), 28),
    'Swin-T stage 2, shifted': (lambda: blocks.WindowAttention(192, 6, 7, 3, **META), 28),
    'Swin-T stage 3': (lambda: blocks.WindowAttention(384, 12, 7, **META), 14),
    'Swin-T stage 3, shifted': (lambda: blocks.WindowAttention(384, 12, 7, 3, **META), 14),
    'Swin-T stage 4': (lambda: blocks.WindowAttention(768, 24, 7, 3, **META), 7),
    'Swin-B stage 1 at 384': (lambda: blocks.WindowAttention(128, 4, 12, **META), 96),
    'Swin-B stage 1 at 384, shifted': (lambda: blocks.WindowAttention(128, 4, 12, 6, **META), 96),
    'DaViT-T stage 1': (lambda: blocks.DualAttention(96, 3, 7, **META), 56),
    'DaViT-T stage 3': (lambda: blocks.DualAttention(384, 12, 7, **META), 14),
    'DaViT-T stage 1 on 61 x 61': (lambda: blocks.DualAttention(96, 3, 7, **META), 61),
    'MaxViT-T stage 1, block': (lambda: blocks.BlockAttention(64, 2, 7, **META), 56),
    'MaxViT-T stage 1, grid': (lambda: blocks.GridAttention(64, 2, 7, **META), 56),
    'MaxViT-T stage 3, grid': (lambda: blocks.GridAttention(256, 8, 7, **META), 14),
    'MaxViT-T stage 1 at 512, block': (lambda: blocks.BlockAttention(64, 2, 16, **META), 128),
    'MaxViT-T stage 1 at 512, grid': (lambda: blocks.GridAttention(64, 2, 16, **META), 128),
    'CrossFormer-S stage 1, short distance': (lambda: blocks.LongShortAttention(96, 3, 7, **META), 56),
    'CrossFormer-S stage 1, long distance': (lambda: blocks.LongShortAttention(96, 3, 7, 8, **META), 56),
    'CrossFormer++-S stage 3': (lambda: blocks.LongShortAttention(256, 8, 14, **META), 14),
}


def describe(arguments):
    """A call by what a kernel may depend on, without what is at its default."""
    bound = inspect.signature(inspect.unwrap(window_attention)).bind(**arguments)
    described = {}
    for name, value in bound.arguments.items():
        if isinstance(value, torch.Tensor):
            described[name] = tuple(value.shape), value.stride(), value.dtype, value.requires_grad
        elif value != bound.signature.parameters[name].default:
            described[name] = value
    return described


@pytest.mark.parametrize('case', BLOCK_CASES, ids=lambda case: case.name)
def test_a_case_is_what_its_block_calls(case, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def record(q, **arguments):
        calls.append(describe({'q': q, **arguments}))
        return window_attention(q, **arguments)

    for module in (window, grid, long_short):
        monkeypatch.setattr(module, 'window_attention', record)
    make, size = BLOCKS[case.name]
    inputs = case.inputs(2, 'meta', torch.float32)
    make()(torch.empty(2, size, size, inputs['q'].shape[-1] // 3, device='meta'))
    assert calls == [describe(inputs)]


def test_every_case_has_its_block() -> None:
    assert list(BLOCKS) == [case.name for case in BLOCK_CASES]
