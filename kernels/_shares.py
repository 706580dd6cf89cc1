"""Sums of the shares of a gradient that programs leave behind, in a fixed order, so that they repeat bitwise.

Imports Triton: only a kernel.py may import this.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._kept import kept
from ._launch import launch
from ._triton import narrow


@triton.jit
def _sum_over_shares(shares, count, stride, place, there, SHARES: tl.constexpr, BLOCK: tl.constexpr):
    """[BLOCK] of the elements at some places of every share."""
    total = tl.zeros([SHARES, BLOCK], tl.float32)
    for first in tl.range(0, count, SHARES):
        share = first + tl.arange(0, SHARES)
        mask = (share < count)[:, None] & there[None, :]
        total += tl.load(shares + share.to(tl.int64)[:, None] * stride + place[None, :], mask=mask, other=0.0)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=['count', 'stride', 'size', 'tokens'])
def _sum_kernel(
    shares, out, count, stride, size, tokens, PADDED: tl.constexpr, SHARES: tl.constexpr, BLOCK: tl.constexpr
):
    """Of matrices [PADDED, PADDED] the part [tokens, tokens]; of other shares all."""
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = element
    if PADDED is not None:
        query = element // tokens
        place = (query // tokens * PADDED + query % tokens) * PADDED + element % tokens
    total = _sum_over_shares(shares, count, stride, place, element < size, SHARES, BLOCK)
    tl.store(out + element, narrow(total, out.dtype.element_ty), mask=element < size)


@triton.jit(do_not_specialize=['count', 'stride', 'tokens', 'heads'])
def _table_sum_kernel(
    shares, pairs, starts, out, count, stride, tokens, heads,
    PADDED: tl.constexpr, SHARES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row of the table and head a program: the sum of all pairs that take it."""
    row, head = tl.program_id(0), tl.program_id(1)
    last = tl.load(starts + row + 1)
    total = tl.zeros([BLOCK], tl.float32)
    for first in tl.range(tl.load(starts + row), last, BLOCK):
        element = first + tl.arange(0, BLOCK)
        pair = tl.load(pairs + element, mask=element < last, other=0)
        place = (head * PADDED + pair // tokens) * PADDED + pair % tokens
        total += _sum_over_shares(shares, count, stride, place, element < last, SHARES, BLOCK)
    tl.store(out + row * heads + head, narrow(tl.sum(total, 0), out.dtype.element_ty))


def sum_of_shares(shares: Tensor | None, like: Tensor | None) -> Tensor | None:
    """[shares, ...] added up, in the shape and dtype of a tensor of as many elements; None if there are no shares."""
    if shares is None or like is None:
        return None
    out = like.new_empty(like.shape)
    _sum(shares, out, 1, None)
    return out


def pair_gradient(shares: Tensor | None, bias: Tensor | None, index: Tensor | None, tokens: int) -> Tensor | None:
    """Of a bias [heads, tokens, tokens], or a table [rows, heads] of which each pair takes a row; None without shares.

    Args:
        shares: [shares, heads, padded, padded], the padding of the tokens included.
        bias: What the gradient is of.
        index: The row of each pair, [tokens, tokens]; None for a bias.
        tokens: Tokens without padding.
    """
    if shares is None or bias is None:
        return None
    out = bias.new_empty(bias.shape)
    if index is None:
        _sum(shares, out, tokens, shares.shape[3])
        return out
    pairs, starts = kept((index,), bias.shape[0], lambda: _inverse(index, bias.shape[0]))
    block = 16
    arguments = {
        'shares': shares, 'pairs': pairs, 'starts': starts, 'out': out, 'count': shares.shape[0],
        'stride': shares.stride(0), 'tokens': tokens, 'heads': bias.shape[1],
        'PADDED': shares.shape[3], 'SHARES': 16, 'BLOCK': block,
    }  # fmt: skip
    steps = triton.cdiv(index.numel(), bias.shape[0] * block)
    launch(_table_sum_kernel, bias.shape, arguments, data_trips=steps, num_warps=1, num_stages=1)
    return out


def _sum(shares: Tensor, out: Tensor, tokens: int, padded: int | None) -> None:
    arguments = {
        'shares': shares, 'out': out, 'count': shares.shape[0], 'stride': shares.stride(0), 'size': out.numel(),
        'tokens': tokens, 'PADDED': padded, 'SHARES': 8, 'BLOCK': 128,
    }  # fmt: skip
    launch(_sum_kernel, (triton.cdiv(out.numel(), 128),), arguments, num_warps=4, num_stages=1)


def _inverse(index: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """The pairs in the order of the rows that they take, and where those of each row start."""
    taken, pairs = index.flatten().sort(stable=True)
    starts = torch.searchsorted(taken, torch.arange(rows + 1, dtype=taken.dtype, device=taken.device))
    return pairs.int(), starts.int()
