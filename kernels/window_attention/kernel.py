"""Window attention in Triton: where the tokens of a window lie in the map, and what is added to a pair of them.

The loops are those of all attentions (`_attention.py`); a group is a window. Where a window's tokens lie, and which of
them are padding, is arithmetic, so the map is read once and written once. The bias and the seam of a shift are the same
for whole kinds of windows: a kernel of its own adds them up once, [kinds, heads, N, N], in whole tiles and base 2.

Windows of up to 64 tokens are one tile, and one kernel gives all their gradients. For larger ones dq, dk with dv, and
the bias are a kernel each. All gradients repeat bitwise: shares of programs are added up in a fixed order.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from attnzoo.kernels._attention import (
    LOG2_E,
    PLAIN,
    attention_backward_alone,
    attention_backward_kv,
    attention_backward_pairs,
    attention_backward_q,
    attention_forward,
)
from attnzoo.kernels._kept import kept
from attnzoo.kernels._launch import Target, launch, split, target_of
from attnzoo.kernels._shares import pair_gradient, sum_of_shares
from attnzoo.kernels._triton import constant, strides_of

from .windows import SHIFT_MASK, Call, is_in_tiles, split_heads

SEAM = tl.constexpr(SHIFT_MASK)

# A geometry is ten runtime numbers and the stride of a kind of window among the tables, then what is known at compile
# time: the window's height and width, the tables' rows, whether padding is masked, the tiles of a window's queries.


@triton.jit
def _locate(group, token, geometry):
    """Row and column of a window's tokens in the map, and whether it has them."""
    size_h, size_w, dilation_h, dilation_w, shift_h, shift_w, wrap_h, wrap_w, _groups_h, groups_w, _kind = geometry[0]
    group_h, group_w = group // groups_w, group % groups_w
    y = (group_h // dilation_h * geometry[1] + token // geometry[2]) * dilation_h + group_h % dilation_h
    x = (group_w // dilation_w * geometry[2] + token % geometry[2]) * dilation_w + group_w % dilation_w
    real = (token < geometry[1] * geometry[2]) & (y < wrap_h) & (x < wrap_w)
    y = tl.where(y + shift_h >= wrap_h, y + shift_h - wrap_h, y + shift_h)
    x = tl.where(x + shift_w >= wrap_w, x + shift_w - wrap_w, x + shift_w)
    return 0, 0, y, x, real & (y < size_h) & (x < size_w)


@triton.jit
def _locate_keys(image, group, tile, token, geometry, index):
    return _locate(group, token, geometry)


@triton.jit
def _locate_shared(group, token, geometry):
    """In the one window of queries that all windows of an image share."""
    return 0, 0, token // geometry[2], token % geometry[2], token < geometry[1] * geometry[2]


@triton.jit
def _locate_shared_of_keys(image, group, tile, token, geometry, index):
    return _locate_shared(group, token, geometry)


@triton.jit
def _locate_shares(group, token, geometry):
    """Where a window leaves its share of the gradient of that one."""
    return group * geometry[1], 0, token // geometry[2], token % geometry[2], token < geometry[1] * geometry[2]


@triton.jit
def _table(tables, group, head, query, key, key_real, geometry):
    """Base-2 logits that pairs have in all images: bias and seam, -inf where there is no key."""
    if tables is None:
        table = tl.where(key < geometry[1] * geometry[2], 0.0, float('-inf'))[None, :]
    else:
        groups_h, groups_w, kind_stride = geometry[0][8], geometry[0][9], geometry[0][10]
        kind = 2 * (group // groups_w == groups_h - 1).to(tl.int32) + (group % groups_w == groups_w - 1).to(tl.int32)
        start = (kind * kind_stride + head) * (geometry[3] * geometry[3])
        table = tl.load(tables + start + (query[:, None] * geometry[3] + key[None, :]))
    if geometry[4]:
        table = tl.where(key_real[None, :], table, float('-inf'))
    return table


@triton.jit
def _table_of_keys(tables, group, head, query, key, key_real, geometry):
    return tl.trans(_table(tables, group, head, query, key, key_real, geometry))


@triton.jit
def _pair(scores, factor, table, q, image, group, head, tile, query, key, geometry, tables):
    return scores * (factor * LOG2_E) + table


@triton.jit
def _query_tiles(image, group, geometry, index):
    return geometry[5]


@triton.jit(do_not_specialize=['bias_strides', 'table_rows', 'heads', 'shift_h', 'shift_w'])
def _window_table_kernel(
    out, bias, index, bias_strides, table_rows, heads, shift_h, shift_w,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """`_table` of each kind of window: interior, last in its row, in its column, in both; and head."""
    tokens: tl.constexpr = WINDOW_H * WINDOW_W
    head = tl.program_id(0) // (TOKENS // ROWS)
    kind = tl.program_id(1)
    query = tl.program_id(0) % (TOKENS // ROWS) * ROWS + tl.arange(0, ROWS)[:, None]
    key = tl.arange(0, COLUMNS)[None, :]
    exists = (query < tokens) & (key < tokens)
    if bias is None:
        value = tl.zeros([ROWS, COLUMNS], tl.float32)
    else:
        if index is not None:
            row = tl.load(index + (query * tokens + key), mask=exists, other=0).to(tl.int32)
            exists = exists & (row >= 0) & (row < table_rows)
            place = row * bias_strides[0] + head * bias_strides[1]
        else:
            place = head * bias_strides[0] + query * bias_strides[1] + key * bias_strides[2]
        value = tl.load(bias + place, mask=exists, other=0.0).to(tl.float32) * LOG2_E
    seam_h, seam_w = WINDOW_H - shift_h, WINDOW_W - shift_w
    across_h = (query // WINDOW_W >= seam_h) != (key // WINDOW_W >= seam_h)
    across_w = (query % WINDOW_W >= seam_w) != (key % WINDOW_W >= seam_w)
    across = (across_h & (kind // 2 == 1)) | (across_w & (kind % 2 == 1))
    value += tl.where(across, SEAM * LOG2_E, 0.0)
    value = tl.where(key < tokens, value, float('-inf'))
    place = ((kind * heads + head) * TOKENS + query) * TOKENS + key
    tl.store(out + place, value, mask=key < TOKENS)


class _Tiles(NamedTuple):
    """By the compilation report: what keeps programs from spilling."""

    rows: int  # of queries
    forward_widths: tuple[int, ...]  # of the tiles that all keys of a window come in
    backward_widths: tuple[int, ...]
    forward_warps: int
    backward_warps: int
    forward_programs: int  # that a multiprocessor holds at a time
    backward_programs: int


def _rows(tokens: int) -> int:
    """Of a tile of queries."""
    return 64 if tokens > 32 else 32 if tokens > 16 else 16


def _widths(tokens: int, most: int) -> tuple[int, ...]:
    if tokens <= 16:
        return (16,) if tokens > 0 else ()
    width = min(most, 1 << (tokens.bit_length() - 1))
    return width, *_widths(tokens - width, most)


def _tiles(tokens: int, head_dim: int, cosine: bool, target: Target) -> _Tiles:
    rows = _rows(tokens)
    if rows < 64:
        warps = rows // 16
        return _Tiles(rows, (rows,), (rows,), warps, warps, 16 // warps, 8 // warps)
    wide = target.backend == 'cuda' and head_dim > 32
    if tokens <= rows:
        backward_warps = 8 if wide or (target.backend == 'cuda' and cosine) else 4
        return _Tiles(rows, (rows,), (rows,), 4, backward_warps, 4, 2)
    widest = 128 if head_dim <= 32 and tokens <= 144 and not cosine else 64
    backward_widths = _widths(tokens, 32 if wide and cosine else 64)
    return _Tiles(rows, _widths(tokens, widest), backward_widths, 4, 8 if wide else 4, 2, 2)


class _Plan(NamedTuple):
    """What follows from a call and the form of its tensors: worked out once."""

    tiles: _Tiles
    query_tiles: int
    padded: int  # tokens in whole tiles
    common: dict[str, Any]  # arguments of all loops
    forward_grid: tuple[int, int, int]
    backward_grid: tuple[int, int, int]
    pairs_grid: tuple[int, int, int]


@functools.lru_cache(maxsize=256)
def _plan(call: Call, images: int, head_dim: int, cosine: bool, filled: bool, shared: bool, target: Target) -> _Plan:
    cut, heads, tokens = call.cut, call.num_heads, call.cut.window[0] * call.cut.window[1]
    tiles = _tiles(tokens, head_dim, cosine, target)
    query_tiles = -(-tokens // tiles.rows)
    padded = query_tiles * tiles.rows
    wrap = cut.size if cut.pad_after_shift else cut.padded
    groups = cut.padded[0] // cut.window[0], cut.padded[1] // cut.window[1]
    numbers = (*cut.size, *cut.dilation, *cut.shift, *wrap, *groups, heads if max(cut.shift) > 0 else 0)
    masked = int(not filled and cut.padded != cut.size)
    common = {
        'geometry': (numbers, *(constant(x) for x in (*cut.window, padded, masked, query_tiles))),
        'size': cut.size, 'images': images, 'groups': cut.groups, 'heads': heads, 'index': None,
        'scale': head_dim**-0.5 if call.scale is None else call.scale,
        'HEAD_DIM': head_dim, 'D': max(16, triton.next_power_of_2(head_dim)),
        'ROWS_OF_Q': _locate_shared if shared else _locate,
        'Q_OF_KEYS': _locate_shared_of_keys if shared else _locate_keys,
        'PRECISION': target.precision, **PLAIN,
    }  # fmt: skip

    def grid(columns: int, programs: int) -> tuple[int, int, int]:
        return columns, *split(cut.groups, images, programs * target.multiprocessors // columns)

    columns = heads * query_tiles
    forward_grid = grid(columns, 2 * tiles.forward_programs)
    # The next window's rows come meanwhile, where there is room for them and a program has more than two images.
    room = target.backend == 'cuda' and head_dim <= 64 and len(tiles.forward_widths) <= 2
    common['STAGES'] = 2 if room and images > 2 * forward_grid[1] else 1
    return _Plan(
        tiles, query_tiles, padded, common, forward_grid,
        grid(columns, tiles.backward_programs),  # few, because each leaves shares behind
        grid(columns * query_tiles, tiles.backward_programs),
    )  # fmt: skip


def _prepare(
    q: Tensor, k: Tensor | None, v: Tensor | None, cosine_scale: Tensor | None, padding: Tensor | None, tables: Tensor,
    call: Call,
) -> tuple[_Plan, dict[str, Any]]:  # fmt: skip
    """What all loops take."""
    shared = k is not None and q.shape != k.shape
    head_dim = q.shape[3] // ((3 if k is None else 1) * call.num_heads)
    plan = _plan(call, q.shape[0], head_dim, cosine_scale is not None, padding is not None, shared, target_of(q))
    q, k, v = split_heads(q, k, v, call.num_heads, call.qkv_layout)
    k_fill, v_fill, fill_strides = None, None, (0, 0)
    if padding is not None:
        k_fill, v_fill = _fills(padding.contiguous(), head_dim, call)
        packed_by_head = call.qkv_layout == 'h3d' and padding.numel() == 3 * call.num_heads * head_dim
        fill_strides = 3 * head_dim if packed_by_head else head_dim, padding.numel()
    arguments = {
        'q': q, 'k': k, 'v': v, 'q_strides': strides_of(q), 'k_strides': strides_of(k, q),
        'k_fill': k_fill, 'v_fill': v_fill, 'fill_strides': fill_strides, 'tables': tables if tables.ndim > 1 else None,
        'v_strides': strides_of(v, q), 'cosine': None if cosine_scale is None else cosine_scale.contiguous(),
    }  # fmt: skip
    return plan, arguments | plan.common


def _fills(padding: Tensor, head_dim: int, call: Call) -> tuple[Tensor, Tensor]:
    """From where a padding, or gradients of it, [..., 2C or 3C], has the keys, and the values."""
    channels = call.num_heads * head_dim
    if padding.shape[-1] == 2 * channels:
        return padding, padding[..., channels:]
    part = channels if call.qkv_layout == '3hd' else head_dim
    return padding[..., part:], padding[..., 2 * part :]


def _fill_tables(tables: Tensor, bias: Tensor | None, bias_index: Tensor | None, call: Call) -> Tensor:
    kinds, heads, padded, _ = tables.shape
    window, shift = call.cut.window, call.cut.shift
    arguments = {
        'out': tables, 'bias': bias, 'index': None if bias_index is None else bias_index.contiguous(),
        'bias_strides': (0, 0) if bias is None else bias.stride(), 'table_rows': 0 if bias is None else bias.shape[0],
        'heads': heads, 'shift_h': shift[0], 'shift_w': shift[1], 'WINDOW_H': window[0], 'WINDOW_W': window[1],
        'ROWS': 16, 'COLUMNS': 1 << (padded - 1).bit_length(), 'TOKENS': padded,
    }  # fmt: skip
    warps = 4 if padded <= 128 else 8  # fewer spill
    launch(_window_table_kernel, (heads * padded // 16, kinds), arguments, num_warps=warps, num_stages=1)
    return tables


def outputs(
    q: Tensor, k: Tensor | None, v: Tensor | None, bias: Tensor | None, bias_index: Tensor | None,
    cosine_scale: Tensor | None, padding: Tensor | None, call: Call, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The map [B, H, W, C], log2 of the sums of weights [B, heads, H, W] (if more than a tile is kept), the tables."""
    tokens, shifted = call.cut.window[0] * call.cut.window[1], max(call.cut.shift) > 0
    out = q.new_empty(q.shape[0], *call.cut.size, q.shape[3] // (3 if k is None else 1))
    sums = (q.shape[0], call.num_heads, *call.cut.size) if keep and is_in_tiles(call) else (0,)
    padded = -(-tokens // _rows(tokens)) * _rows(tokens)
    tables = (4 if shifted else 1, call.num_heads, padded, padded) if shifted or bias is not None else (0,)
    return out, q.new_empty(sums, dtype=torch.float32), q.new_empty(tables, dtype=torch.float32)


def forward(
    q: Tensor, k: Tensor | None, v: Tensor | None, bias: Tensor | None, bias_index: Tensor | None,
    cosine_scale: Tensor | None, padding: Tensor | None, call: Call, keep: bool, reuse: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`outputs`, filled; in inference with the tables of the last call, where they may be used again."""
    out, lse, tables = outputs(q, k, v, bias, bias_index, cosine_scale, padding, call, keep)
    if reuse and bias is not None:
        cut = call.cut
        tables = kept((bias, bias_index), (cut.window, cut.shift), lambda: _fill_tables(tables, bias, bias_index, call))
    elif tables.ndim > 1:
        _fill_tables(tables, bias, bias_index, call)
    plan, arguments = _prepare(q, k, v, cosine_scale, padding, tables, call)
    out_heads = out.view(*out.shape[:3], call.num_heads, plan.common['HEAD_DIM'])
    arguments |= {
        'out': out_heads, 'out_strides': strides_of(out_heads), 'lse': lse if lse.ndim > 1 else None,
        'QUERIES': _locate, 'KEYS': _locate_keys, 'TABLE': _table, 'PAIR': _pair,
        'M': plan.tiles.rows, 'WIDTHS': plan.tiles.forward_widths, 'TILES': plan.query_tiles,
    }  # fmt: skip
    launch(attention_forward, plan.forward_grid, arguments, num_warps=plan.tiles.forward_warps, num_stages=1)
    return out, lse, tables


def backward(
    d_out: Tensor, out: Tensor | None, lse: Tensor, tables: Tensor,
    q: Tensor, k: Tensor | None, v: Tensor | None, bias: Tensor | None, bias_index: Tensor | None,
    cosine_scale: Tensor | None, padding: Tensor | None, call: Call, needs: Sequence[bool],
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of the tensors, of those that need them; of q, k and v always."""
    plan, arguments = _prepare(q, k, v, cosine_scale, padding, tables, call)
    cut, heads, tiles, query_tiles, padded = call.cut, call.num_heads, plan.tiles, plan.query_tiles, plan.padded
    head_dim, shared = plan.common['HEAD_DIM'], k is not None and q.shape != k.shape
    new = functools.partial(q.new_empty, dtype=torch.float32)
    d_out, dq = d_out.view(*d_out.shape[:3], heads, head_dim), q.new_empty(q.shape)
    dk, dv = (None, None) if k is None else (q.new_empty(k.shape), q.new_empty(k.shape))
    d_shared = new(q.shape[0], cut.groups * cut.window[0], *q.shape[2:]) if shared else dq
    dq_heads, dk_heads, dv_heads = split_heads(d_shared, dk, dv, heads, call.qkv_layout)
    programs = plan.backward_grid[1] * plan.backward_grid[2]
    d_cosine = new(programs * query_tiles, heads) if needs[5] else None
    # q's part of a packed padding has no effect on the map.
    d_padding = new(programs * query_tiles, padding.numel()).zero_() if padding is not None and needs[6] else None
    arguments |= {
        'd_out': d_out, 'd_out_strides': strides_of(d_out), 'dq': dq_heads, 'dk': dk_heads, 'dv': dv_heads,
        'dq_strides': strides_of(dq_heads), 'dk_strides': strides_of(dk_heads), 'd_cosine': d_cosine, 'delta': None,
        'dv_strides': strides_of(dv_heads, dk_heads), 'd_k_fill': None, 'd_v_fill': None, 'lse': lse, 'd_pairs': None,
        'QUERIES': _locate, 'ROWS_OF_DQ': _locate_shares if shared else _locate, 'KEYS': _locate_keys,
        'KEY_GROUP': _locate, 'QUERIES_OF_KEYS': _locate_keys, 'QUERY_TILES': _query_tiles,
        'TABLE': _table, 'TABLE_OF_KEYS': _table_of_keys, 'PAIR': _pair, 'PAIR_OF_KEYS': _pair, 'M': tiles.rows,
        'N': tiles.rows, 'WIDTHS': tiles.backward_widths, 'TILES': query_tiles, 'KEY_TILES': query_tiles,
    }  # fmt: skip
    if d_padding is not None:
        arguments['d_k_fill'], arguments['d_v_fill'] = _fills(d_padding, head_dim, call)
    options = {'num_warps': tiles.backward_warps, 'num_stages': 1}
    if lse.ndim == 1:
        d_pairs = arguments['d_pairs'] = new(programs, heads, padded, padded) if needs[3] else None
        launch(attention_backward_alone, plan.backward_grid, arguments, **options)
    else:
        assert out is not None
        out_heads = out.view(d_out.shape)
        arguments |= {'out': out_heads, 'out_strides': strides_of(out_heads), 'delta': new(lse.shape)}
        launch(attention_backward_q, plan.backward_grid, arguments, **options)
        launch(attention_backward_kv, plan.backward_grid, arguments, **options)
        pair_shares = plan.pairs_grid[1] * plan.pairs_grid[2]
        d_pairs = arguments['d_pairs'] = new(pair_shares, heads, padded, padded) if needs[3] else None
        if d_pairs is not None:
            launch(attention_backward_pairs, plan.pairs_grid, arguments, **options)
    if shared:
        dq.copy_(d_shared.view(q.shape[0], cut.groups, *q.shape[1:]).sum(1))
    d_bias = pair_gradient(d_pairs, bias, bias_index, cut.window[0] * cut.window[1])
    return [dq, dk, dv, d_bias, None, sum_of_shares(d_cosine, cosine_scale), sum_of_shares(d_padding, padding)]
