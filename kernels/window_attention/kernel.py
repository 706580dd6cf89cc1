"""Window attention in Triton: a program takes a window of one head (or a tile of its queries) where it lies in the map.

Legend: tiles of M queries x N keys, D channels: those of a head, rounded up to a power of two. Where a window's tokens
lie in the map, which of them are padding and which only the shift brought together is arithmetic (`_locate`), so the
map is read once and written once.

Forward: softmax over tiles of keys with its running maximum and sum in float32 (FlashAttention, arXiv 2205.14135).
Backward: scores are computed again. Windows up to 64 tokens are one tile: a program takes many of them in turn, keeps
the gradient of the bias in registers and writes its share of the sum once. In larger windows a program goes over the
tiles for dq, then for dk and dv, and the gradient of the bias is a kernel of its own, which reads the map again.
Shares are added up outside, without atomics; only the rows of a table, which `index_add_` sums last, need
`torch.use_deterministic_algorithms` to repeat bitwise.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from attnzoo.kernels._launch import Target, launch, target_of
from attnzoo.kernels._triton import dot, narrow

from .windows import SHIFT_MASK, Partition, make_partition, split_heads

ONE_TILE = 64  # tokens

SEAM = tl.constexpr(SHIFT_MASK)
LOG2_E = tl.constexpr(1.4426950408889634)
NORM_FLOOR = tl.constexpr(1e-12)  # that of torch.nn.functional.normalize


@triton.jit
def _locate(group, token, tokens, cut):
    """Row and column of a window's tokens, whether the map has them, and which piece of the map they belong to."""
    size_h, size_w, window_h, window_w, dilation_h, dilation_w, shift_h, shift_w, wrap_h, wrap_w, padded_h, padded_w = (
        cut
    )
    groups_w = padded_w // window_w
    group_h, group_w = group // groups_w, group % groups_w
    y = (group_h // dilation_h * window_h + token // window_w) * dilation_h + group_h % dilation_h
    x = (group_w // dilation_w * window_w + token % window_w) * dilation_w + group_w % dilation_w
    piece = 3 * ((y >= padded_h - window_h).to(tl.int32) + (y >= padded_h - shift_h).to(tl.int32))
    piece += (x >= padded_w - window_w).to(tl.int32) + (x >= padded_w - shift_w).to(tl.int32)
    real = (token < tokens) & (y < wrap_h) & (x < wrap_w)
    y = tl.where(y + shift_h >= wrap_h, y + shift_h - wrap_h, y + shift_h)
    x = tl.where(x + shift_w >= wrap_w, x + shift_w - wrap_w, x + shift_w)
    return y, x, real & (y < size_h) & (x < size_w), piece


@triton.jit
def _offsets(strides, image, head, y, x, D: tl.constexpr):
    """[tokens, D] into a map [B, H, W, heads, d], of which one image spans less than 2**31 elements.

    Strides count units of eight elements wherever they can, so that the compiler knows whole vectors to be aligned.
    """
    stride_b, stride_h, stride_w, stride_head, stride_d, UNIT = strides
    token = (y * stride_h + x * stride_w + head * stride_head) * UNIT
    return tl.cast(image, tl.int64) * stride_b * UNIT + (token[:, None] + (tl.arange(0, D) * stride_d)[None, :])


@triton.jit
def _load(ptr, strides, image, head, y, x, real, HEAD_DIM: tl.constexpr, D: tl.constexpr):
    mask = real[:, None] & (tl.arange(0, D) < HEAD_DIM)[None, :]
    return tl.load(ptr + _offsets(strides, image, head, y, x, D), mask=mask, other=0.0)


@triton.jit
def _store(ptr, strides, image, head, y, x, real, value, HEAD_DIM: tl.constexpr, D: tl.constexpr):
    mask = real[:, None] & (tl.arange(0, D) < HEAD_DIM)[None, :]
    tl.store(ptr + _offsets(strides, image, head, y, x, D), narrow(value, ptr.dtype.element_ty), mask=mask)


@triton.jit
def _load_queries(ptr, strides, image, group, head, token, tokens, cut, SHARED_Q: tl.constexpr, HEAD_DIM, D):
    if SHARED_Q:
        return _load(ptr, strides, image, head, token // cut[3], token % cut[3], token < tokens, HEAD_DIM, D)
    else:
        y, x, real, _piece = _locate(group, token, tokens, cut)
        return _load(ptr, strides, image, head, y, x, real, HEAD_DIM, D)


@triton.jit
def _load_keys(ptr, strides, padding, padding_strides, image, group, head, token, tokens, cut, HEAD_DIM, D):
    y, x, real, _piece = _locate(group, token, tokens, cut)
    keys = _load(ptr, strides, image, head, y, x, real, HEAD_DIM, D)
    if padding is not None:
        channel = tl.arange(0, D)
        offset = head * padding_strides[0] + channel * padding_strides[1]
        value = tl.load(padding + offset, mask=channel < HEAD_DIM, other=0.0).to(keys.dtype)
        keys = tl.where(real[:, None], keys, value[None, :])
    return keys


@triton.jit
def _inverse_norm(x, cosine):
    """1 / |x| of each row for scores that are cosines, None for the others."""
    if cosine is None:
        return None
    else:
        x = x.to(tl.float32)
        return 1.0 / tl.maximum(tl.sqrt(tl.sum(x * x, 1)), NORM_FLOOR)


@triton.jit
def _through_norm(x, inverse_norm, grad, factor):
    """The gradient of x from that of factor * x / |x|, and the part of the latter along x / |x| in each row.

    With a factor only, where there is no norm.
    """
    if inverse_norm is None:
        return grad * factor, None
    else:
        unit = x.to(tl.float32) * inverse_norm[:, None]
        along = tl.sum(unit * grad, 1)
        inside = tl.where(inverse_norm < 1.0 / NORM_FLOOR, along, 0.0)
        return (factor * inverse_norm)[:, None] * (grad - unit * inside[:, None]), along


@triton.jit
def _weigh(d_scores, inverse_norm, dtype: tl.constexpr):
    """Gradients of the scores [M, N] as factors of the keys, or transposed of the queries, that they flow from."""
    if inverse_norm is not None:
        d_scores = d_scores * inverse_norm[None, :]
    return narrow(d_scores, dtype)


@triton.jit
def _window_attention_bias_kernel(
    bias, index, out, bias_strides, table_rows, tokens,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Base-2 logits that a head's windows have in common, [heads, TOKENS, TOKENS]: -inf where there is no key.

    Looked up once, so that the other kernels read it in whole vectors.
    """
    head = tl.program_id(0) // (TOKENS // ROWS)
    query = tl.program_id(0) % (TOKENS // ROWS) * ROWS + tl.arange(0, ROWS)[:, None]
    key = tl.arange(0, COLUMNS)[None, :]
    exists = (query < tokens) & (key < tokens)
    if index is not None:
        row = tl.load(index + (query * tokens + key), mask=exists, other=0).to(tl.int32)
        exists = exists & (row >= 0) & (row < table_rows)
        place = row * bias_strides[0] + head * bias_strides[1]
    else:
        place = head * bias_strides[0] + query * bias_strides[1] + key * bias_strides[2]
    value = tl.load(bias + place, mask=exists, other=0.0).to(tl.float32) * LOG2_E
    value = tl.where(key < tokens, value, float('-inf'))
    tl.store(out + (head * TOKENS + query) * TOKENS + key, value, mask=(query < TOKENS) & (key < TOKENS))


@triton.jit
def _load_bias(bias, head, query, key, tokens, TOKENS: tl.constexpr):
    if bias is not None:
        return tl.load(bias + (head * TOKENS + query[:, None]) * TOKENS + key[None, :])
    else:
        return tl.where(key < tokens, 0.0, float('-inf'))[None, :]


@triton.jit
def _scores(
    q, k, q_norm, k_norm, factor, bias, group, query, key, tokens, cut,
    SHIFTED: tl.constexpr, MASK_PADDING: tl.constexpr,
):  # fmt: skip
    """Base-2 logits [M, N]."""
    scores = dot(q, tl.trans(k)) * (factor * LOG2_E)
    if q_norm is not None:
        scores *= q_norm[:, None] * k_norm[None, :]
    scores += bias
    if SHIFTED or MASK_PADDING:
        _y, _x, key_real, key_piece = _locate(group, key, tokens, cut)
        if SHIFTED:
            _y, _x, _real, query_piece = _locate(group, query, tokens, cut)
            scores += tl.where(query_piece[:, None] == key_piece[None, :], 0.0, SEAM * LOG2_E)
        if MASK_PADDING:
            scores = tl.where(key_real[None, :], scores, float('-inf'))
    return scores


@triton.jit
def _window_attention_fwd_kernel(
    q, k, v, out, lse, bias, cosine, k_padding, v_padding,
    q_strides, k_strides, v_strides, out_strides, padding_strides,
    cut, groups, heads, tokens, scale,
    SHIFTED: tl.constexpr, MASK_PADDING: tl.constexpr, SHARED_Q: tl.constexpr,
    TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    KEY_TILES: tl.constexpr,
):  # fmt: skip
    query_tiles = tl.cdiv(tokens, M)
    program = tl.program_id(0)
    window = program // (query_tiles * heads)
    head = program // query_tiles % heads
    image, group = window // groups, window % groups
    query = program % query_tiles * M + tl.arange(0, M)

    q_tile = _load_queries(q, q_strides, image, group, head, query, tokens, cut, SHARED_Q, HEAD_DIM, D)
    q_norm = _inverse_norm(q_tile, cosine)
    factor = scale
    if cosine is not None:
        factor = tl.load(cosine + head).to(tl.float32)
    largest = tl.full([M], -1e30, tl.float32)  # finite: a tile of keys may be padding only
    total = tl.zeros([M], tl.float32)
    mean = tl.zeros([M, D], tl.float32)
    for start in range(0, KEY_TILES * N, N):
        key = start + tl.arange(0, N)
        k_tile = _load_keys(k, k_strides, k_padding, padding_strides, image, group, head, key, tokens, cut, HEAD_DIM, D)
        v_tile = _load_keys(v, v_strides, v_padding, padding_strides, image, group, head, key, tokens, cut, HEAD_DIM, D)
        k_norm = _inverse_norm(k_tile, cosine)
        bias_tile = _load_bias(bias, head, query, key, tokens, TOKENS)
        scores = _scores(
            q_tile, k_tile, q_norm, k_norm, factor, bias_tile, group, query, key, tokens, cut, SHIFTED, MASK_PADDING
        )
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - new_largest[:, None])
        rescale = tl.exp2(largest - new_largest)
        total = total * rescale + tl.sum(weights, 1)
        mean = mean * rescale[:, None] + dot(narrow(weights, v_tile.dtype), v_tile)
        largest = new_largest
    y, x, real, _piece = _locate(group, query, tokens, cut)
    _store(out, out_strides, image, head, y, x, real, mean / total[:, None], HEAD_DIM, D)
    if lse is not None:
        row = (tl.cast(window, tl.int64) * heads + head) * tokens + query
        tl.store(lse + row, largest + tl.log2(total), mask=query < tokens)


@triton.jit
def _score_gradients(scores, lse, query_real, do_tile, v_tile, delta):
    """Weights [M, N] and the gradients of the scores. Rows of no query of the map are zero."""
    weights = tl.where(query_real[:, None], tl.exp2(scores - lse[:, None]), 0.0)
    d_weights = dot(do_tile, tl.trans(v_tile))
    if delta is None:
        delta = tl.sum(weights * d_weights, 1)
    return weights, weights * (d_weights - delta[:, None])


@triton.jit
def _window_attention_bwd_one_tile_kernel(
    q, k, v, d_out, bias, cosine, k_padding, v_padding,
    dq, dk, dv, d_bias, d_cosine, d_k_padding, d_v_padding,
    q_strides, k_strides, v_strides, d_out_strides, padding_strides, dq_strides, dk_strides, dv_strides,
    cut, windows, groups, heads, tokens, scale,
    SHIFTED: tl.constexpr, MASK_PADDING: tl.constexpr, SHARED_Q: tl.constexpr,
    TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, D: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    share = tl.program_id(0) // heads
    head = tl.program_id(0) % heads
    token = tl.arange(0, N)
    factor = scale
    if cosine is not None:
        factor = tl.load(cosine + head).to(tl.float32)
    bias_sum = tl.zeros([N, N], tl.float32)
    cosine_sum = tl.zeros([N], tl.float32)
    k_padding_sum = tl.zeros([D], tl.float32)
    v_padding_sum = tl.zeros([D], tl.float32)
    for window in tl.range(share, windows, tl.num_programs(0) // heads, disable_licm=True):
        image, group = window // groups, window % groups
        y, x, real, _piece = _locate(group, token, tokens, cut)
        q_tile = _load_queries(q, q_strides, image, group, head, token, tokens, cut, SHARED_Q, HEAD_DIM, D)
        k_tile = _load_keys(
            k, k_strides, k_padding, padding_strides, image, group, head, token, tokens, cut, HEAD_DIM, D
        )
        v_tile = _load_keys(
            v, v_strides, v_padding, padding_strides, image, group, head, token, tokens, cut, HEAD_DIM, D
        )
        do_tile = _load(d_out, d_out_strides, image, head, y, x, real, HEAD_DIM, D)
        q_norm = _inverse_norm(q_tile, cosine)
        k_norm = _inverse_norm(k_tile, cosine)
        bias_tile = _load_bias(bias, head, token, token, tokens, TOKENS)
        scores = _scores(
            q_tile, k_tile, q_norm, k_norm, factor, bias_tile, group, token, token, tokens, cut, SHIFTED, MASK_PADDING
        )
        largest = tl.maximum(tl.max(scores, 1), -1e30)  # finite, where a window is padding only
        lse = largest + tl.log2(tl.sum(tl.exp2(scores - largest[:, None]), 1))
        weights, d_scores = _score_gradients(scores, lse, real, do_tile, v_tile, None)
        if d_bias is not None:
            bias_sum += d_scores
        outside = ((token < tokens) & ~real)[:, None]
        dv_tile = dot(tl.trans(narrow(weights, do_tile.dtype)), do_tile)
        _store(dv, dv_strides, image, head, y, x, real, dv_tile, HEAD_DIM, D)
        dk_tile = dot(_weigh(tl.trans(d_scores), q_norm, q_tile.dtype), q_tile)
        dk_tile, _along = _through_norm(k_tile, k_norm, dk_tile, factor)
        _store(dk, dk_strides, image, head, y, x, real, dk_tile, HEAD_DIM, D)
        if d_k_padding is not None:
            k_padding_sum += tl.sum(tl.where(outside, dk_tile, 0.0), 0)
            v_padding_sum += tl.sum(tl.where(outside, dv_tile, 0.0), 0)
        dq_tile = dot(_weigh(d_scores, k_norm, k_tile.dtype), k_tile)
        dq_tile, along = _through_norm(q_tile, q_norm, dq_tile, factor)
        if d_cosine is not None:
            cosine_sum += along
        if SHARED_Q:
            row, column = group * cut[2] + token // cut[3], token % cut[3]
            _store(dq, dq_strides, image, head, row, column, token < tokens, dq_tile, HEAD_DIM, D)
        else:
            _store(dq, dq_strides, image, head, y, x, real, dq_tile, HEAD_DIM, D)

    # Shares lie side by side as [shares, heads, ...], one a program.
    place = tl.cast(tl.program_id(0), tl.int64)
    if d_bias is not None:
        tl.store(d_bias + place * TOKENS * TOKENS + (token[:, None] * TOKENS + token[None, :]), bias_sum)
    if d_cosine is not None:
        tl.store(d_cosine + place, tl.sum(cosine_sum, 0))
    if d_k_padding is not None:
        channel = tl.arange(0, D)
        tl.store(d_k_padding + place * HEAD_DIM + channel, k_padding_sum, mask=channel < HEAD_DIM)
        tl.store(d_v_padding + place * HEAD_DIM + channel, v_padding_sum, mask=channel < HEAD_DIM)


@triton.jit
def _window_attention_bwd_tiles_kernel(
    q, k, v, out, lse, d_out, bias, cosine, k_padding, v_padding,
    dq, dk, dv, delta, d_cosine, d_k_padding, d_v_padding,
    q_strides, k_strides, v_strides, out_strides, d_out_strides, padding_strides,
    dq_strides, dk_strides, dv_strides,
    cut, groups, heads, tokens, scale,
    SHIFTED: tl.constexpr, MASK_PADDING: tl.constexpr, SHARED_Q: tl.constexpr,
    TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    QUERY_TILES: tl.constexpr, KEY_TILES: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) % heads
    window = tl.program_id(0) // heads
    image, group = window // groups, window % groups
    first_row = tl.cast(tl.program_id(0), tl.int64) * tokens
    factor = scale
    if cosine is not None:
        factor = tl.load(cosine + head).to(tl.float32)
    cosine_sum = tl.zeros([M], tl.float32)

    for query_start in range(0, QUERY_TILES * M, M):
        query = query_start + tl.arange(0, M)
        y, x, real, _piece = _locate(group, query, tokens, cut)
        q_tile = _load_queries(q, q_strides, image, group, head, query, tokens, cut, SHARED_Q, HEAD_DIM, D)
        do_tile = _load(d_out, d_out_strides, image, head, y, x, real, HEAD_DIM, D)
        out_tile = _load(out, out_strides, image, head, y, x, real, HEAD_DIM, D)
        row_lse = tl.load(lse + first_row + query, mask=query < tokens, other=0.0)
        row_delta = tl.sum(out_tile.to(tl.float32) * do_tile.to(tl.float32), 1)
        tl.store(delta + first_row + query, row_delta, mask=query < tokens)
        q_norm = _inverse_norm(q_tile, cosine)
        grad = tl.zeros([M, D], tl.float32)
        for key_start in range(0, KEY_TILES * N, N):
            key = key_start + tl.arange(0, N)
            k_tile = _load_keys(
                k, k_strides, k_padding, padding_strides, image, group, head, key, tokens, cut, HEAD_DIM, D
            )
            v_tile = _load_keys(
                v, v_strides, v_padding, padding_strides, image, group, head, key, tokens, cut, HEAD_DIM, D
            )
            k_norm = _inverse_norm(k_tile, cosine)
            bias_tile = _load_bias(bias, head, query, key, tokens, TOKENS)
            scores = _scores(
                q_tile, k_tile, q_norm, k_norm, factor, bias_tile, group, query, key, tokens, cut, SHIFTED, MASK_PADDING
            )
            _weights, d_scores = _score_gradients(scores, row_lse, real, do_tile, v_tile, row_delta)
            grad += dot(_weigh(d_scores, k_norm, k_tile.dtype), k_tile)
        dq_tile, along = _through_norm(q_tile, q_norm, grad, factor)
        if d_cosine is not None:
            cosine_sum += along
        if SHARED_Q:
            row, column = group * cut[2] + query // cut[3], query % cut[3]
            _store(dq, dq_strides, image, head, row, column, query < tokens, dq_tile, HEAD_DIM, D)
        else:
            _store(dq, dq_strides, image, head, y, x, real, dq_tile, HEAD_DIM, D)

    tl.debug_barrier()  # the rows of delta are read by other threads than wrote them
    k_padding_sum = tl.zeros([D], tl.float32)
    v_padding_sum = tl.zeros([D], tl.float32)
    for key_start in range(0, KEY_TILES * N, N):
        key = key_start + tl.arange(0, N)
        k_tile = _load_keys(k, k_strides, k_padding, padding_strides, image, group, head, key, tokens, cut, HEAD_DIM, D)
        v_tile = _load_keys(v, v_strides, v_padding, padding_strides, image, group, head, key, tokens, cut, HEAD_DIM, D)
        k_norm = _inverse_norm(k_tile, cosine)
        grad = tl.zeros([N, D], tl.float32)
        dv_tile = tl.zeros([N, D], tl.float32)
        for query_start in range(0, QUERY_TILES * M, M):
            query = query_start + tl.arange(0, M)
            y, x, real, _piece = _locate(group, query, tokens, cut)
            q_tile = _load_queries(q, q_strides, image, group, head, query, tokens, cut, SHARED_Q, HEAD_DIM, D)
            do_tile = _load(d_out, d_out_strides, image, head, y, x, real, HEAD_DIM, D)
            row_lse = tl.load(lse + first_row + query, mask=query < tokens, other=0.0)
            row_delta = tl.load(delta + first_row + query, mask=query < tokens, other=0.0)
            q_norm = _inverse_norm(q_tile, cosine)
            bias_tile = _load_bias(bias, head, query, key, tokens, TOKENS)
            scores = _scores(
                q_tile, k_tile, q_norm, k_norm, factor, bias_tile, group, query, key, tokens, cut, SHIFTED, MASK_PADDING
            )
            weights, d_scores = _score_gradients(scores, row_lse, real, do_tile, v_tile, row_delta)
            dv_tile += dot(tl.trans(narrow(weights, do_tile.dtype)), do_tile)
            grad += dot(_weigh(tl.trans(d_scores), q_norm, q_tile.dtype), q_tile)
        dk_tile, _along = _through_norm(k_tile, k_norm, grad, factor)
        y, x, real, _piece = _locate(group, key, tokens, cut)
        _store(dk, dk_strides, image, head, y, x, real, dk_tile, HEAD_DIM, D)
        _store(dv, dv_strides, image, head, y, x, real, dv_tile, HEAD_DIM, D)
        if d_k_padding is not None:
            outside = ((key < tokens) & ~real)[:, None]
            k_padding_sum += tl.sum(tl.where(outside, dk_tile, 0.0), 0)
            v_padding_sum += tl.sum(tl.where(outside, dv_tile, 0.0), 0)

    place = tl.cast(tl.program_id(0), tl.int64)
    if d_cosine is not None:
        tl.store(d_cosine + place, tl.sum(cosine_sum, 0))
    if d_k_padding is not None:
        channel = tl.arange(0, D)
        tl.store(d_k_padding + place * HEAD_DIM + channel, k_padding_sum, mask=channel < HEAD_DIM)
        tl.store(d_v_padding + place * HEAD_DIM + channel, v_padding_sum, mask=channel < HEAD_DIM)


@triton.jit
def _window_attention_bwd_bias_kernel(
    q, k, v, lse, delta, d_out, bias, cosine, k_padding, v_padding, d_bias,
    q_strides, k_strides, v_strides, d_out_strides, padding_strides,
    cut, windows, groups, heads, tokens, scale,
    SHIFTED: tl.constexpr, MASK_PADDING: tl.constexpr, SHARED_Q: tl.constexpr,
    TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """A tile of one head's bias a program, summed over its share of the windows."""
    key_tiles = tl.cdiv(tokens, N)
    tiles = tl.cdiv(tokens, M) * key_tiles
    tile = tl.program_id(0) % tiles
    head = tl.program_id(0) // tiles % heads
    share = tl.program_id(0) // (tiles * heads)
    query = tile // key_tiles * M + tl.arange(0, M)
    key = tile % key_tiles * N + tl.arange(0, N)
    factor = scale
    if cosine is not None:
        factor = tl.load(cosine + head).to(tl.float32)
    bias_tile = _load_bias(bias, head, query, key, tokens, TOKENS)
    total = tl.zeros([M, N], tl.float32)
    for window in tl.range(share, windows, tl.num_programs(0) // (tiles * heads), disable_licm=True):
        image, group = window // groups, window % groups
        y, x, real, _piece = _locate(group, query, tokens, cut)
        q_tile = _load_queries(q, q_strides, image, group, head, query, tokens, cut, SHARED_Q, HEAD_DIM, D)
        do_tile = _load(d_out, d_out_strides, image, head, y, x, real, HEAD_DIM, D)
        k_tile = _load_keys(k, k_strides, k_padding, padding_strides, image, group, head, key, tokens, cut, HEAD_DIM, D)
        v_tile = _load_keys(v, v_strides, v_padding, padding_strides, image, group, head, key, tokens, cut, HEAD_DIM, D)
        row = (tl.cast(window, tl.int64) * heads + head) * tokens + query
        row_lse = tl.load(lse + row, mask=query < tokens, other=0.0)
        row_delta = tl.load(delta + row, mask=query < tokens, other=0.0)
        q_norm = _inverse_norm(q_tile, cosine)
        k_norm = _inverse_norm(k_tile, cosine)
        scores = _scores(
            q_tile, k_tile, q_norm, k_norm, factor, bias_tile, group, query, key, tokens, cut, SHIFTED, MASK_PADDING
        )
        _weights, d_scores = _score_gradients(scores, row_lse, real, do_tile, v_tile, row_delta)
        total += d_scores
    place = (tl.cast(share, tl.int64) * heads + head) * TOKENS * TOKENS
    tl.store(d_bias + place + (query[:, None] * TOKENS + key[None, :]), total)


def forward(*arguments: Any, keep_lse: bool) -> tuple[Tensor, Tensor]:
    """The map [B, H, W, C] for the arguments of the reference.

    With `keep_lse`, and for more tokens than one tile, also what the backward pass needs: log2 of the sum of weights,
    [B * G, heads, N].
    """
    common, cut = _common_arguments(*arguments)
    q, heads, head_dim, tokens = arguments[0], common['heads'], common['HEAD_DIM'], common['tokens']
    windows = q.shape[0] * cut.groups
    out = q.new_empty(q.shape[0], *cut.size, heads * head_dim)
    lse = q.new_empty((windows, heads, tokens) if keep_lse and tokens > ONE_TILE else 0, dtype=torch.float32)
    out_heads = out.unflatten(-1, (heads, head_dim))
    tile, warps, *_ = _tiles(tokens, head_dim, arguments[5] is not None, target_of(q))
    own = {
        'out': out_heads, 'out_strides': _strides(out_heads), 'lse': lse if lse.numel() else None,
        'M': tile, 'N': tile, 'KEY_TILES': triton.cdiv(tokens, tile),
    }  # fmt: skip
    programs = windows * heads * triton.cdiv(tokens, tile)
    launch(_window_attention_fwd_kernel, programs, common | own, num_warps=warps, num_stages=2)
    return out, lse


def backward(d_out: Tensor, out: Tensor | None, lse: Tensor, *arguments: Any, needs: list[bool]) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, bias, cosine_scale and padding; `needs` says of which of the last three. Empty if none."""
    common, cut = _common_arguments(*arguments)
    q, k, _, bias, bias_index, cosine_scale, padding = arguments[:7]
    heads, head_dim, tokens, padded = (common[name] for name in ('heads', 'HEAD_DIM', 'tokens', 'TOKENS'))
    windows, one_tile = q.shape[0] * cut.groups, tokens <= ONE_TILE
    dq = q.new_empty(q.shape)
    dk, dv = (q.new_empty(0 if k is None else k.shape) for _ in range(2))
    if common['SHARED_Q']:  # a share for each window of an image
        dq = q.new_empty(q.shape[0], cut.groups * cut.window[0], *q.shape[2:], dtype=torch.float32)
    dq_heads, dk_heads, dv_heads = split_heads(dq, None if k is None else dk, dv, heads, arguments[-2])
    d_out = d_out.unflatten(-1, (heads, head_dim))

    target = target_of(q)
    # Programs that sum over windows: enough to fill the device, few enough that their shares are small.
    shares = min(windows, triton.cdiv(4 * target.multiprocessors, heads))
    programs = shares if one_tile and any(needs) else windows
    d_bias = q.new_empty(shares, heads, padded, padded, dtype=torch.float32) if needs[0] else None
    d_cosine = q.new_empty(programs, heads, dtype=torch.float32) if needs[1] else None
    d_paddings = q.new_empty(2, programs, heads, head_dim, dtype=torch.float32) if needs[2] else None
    d_k_padding, d_v_padding = (None, None) if d_paddings is None else d_paddings.unbind(0)
    tile, _, warps, stages = _tiles(tokens, head_dim, cosine_scale is not None, target)
    d_out_argument = {'d_out': d_out, 'd_out_strides': _strides(d_out)}
    grads = {
        'dq': dq_heads, 'dk': dk_heads, 'dv': dv_heads,
        'dq_strides': _strides(dq_heads), 'dk_strides': _strides(dk_heads), 'dv_strides': _strides(dv_heads),
        'd_cosine': d_cosine, 'd_k_padding': d_k_padding, 'd_v_padding': d_v_padding,
    }  # fmt: skip
    if one_tile:
        own = {'windows': windows, 'd_bias': d_bias, 'N': tile}
        arguments_of_kernel = common | d_out_argument | grads | own
        launch(
            _window_attention_bwd_one_tile_kernel,
            programs * heads,
            arguments_of_kernel,
            num_warps=warps,
            num_stages=stages,
        )
    else:
        tiles = triton.cdiv(tokens, tile)
        rows = {'lse': lse, 'delta': torch.empty_like(lse), 'M': tile, 'N': tile}
        assert out is not None
        out = out.unflatten(-1, (heads, head_dim))
        own = {'out': out, 'out_strides': _strides(out), 'QUERY_TILES': tiles, 'KEY_TILES': tiles}
        arguments_of_kernel = common | d_out_argument | grads | rows | own
        launch(
            _window_attention_bwd_tiles_kernel, windows * heads, arguments_of_kernel, num_warps=warps, num_stages=stages
        )
        if d_bias is not None:
            arguments_of_kernel = common | d_out_argument | rows | {'windows': windows, 'd_bias': d_bias}
            programs = shares * heads * tiles * tiles
            launch(_window_attention_bwd_bias_kernel, programs, arguments_of_kernel, num_warps=warps, num_stages=1)

    if common['SHARED_Q']:
        dq = dq.view(q.shape[0], cut.groups, *q.shape[1:]).sum(1).to(q.dtype)
    return (
        dq,
        dk,
        dv,
        q.new_empty(0) if d_bias is None else _bias_gradient(d_bias, bias, bias_index, tokens),
        q.new_empty(0) if d_cosine is None else d_cosine.sum(0).view(cosine_scale.shape).to(cosine_scale.dtype),
        q.new_empty(0) if d_paddings is None else _padding_gradient(d_paddings.sum(1), padding, arguments[-2]),
    )


def _split_padding(
    padding: Tensor | None, num_heads: int, head_dim: int, qkv_layout: str
) -> tuple[Tensor | None, Tensor | None]:
    """What k and v are at padded positions, [heads, d] each; q's share, if there is one, has no effect on the map."""
    if padding is None:
        return None, None
    if padding.numel() == 2 * num_heads * head_dim:
        k, v = padding.view(2, num_heads, head_dim).unbind(0)
    elif qkv_layout == '3hd':
        _, k, v = padding.view(3, num_heads, head_dim).unbind(0)
    else:
        _, k, v = padding.view(num_heads, 3, head_dim).unbind(1)
    return k, v


def _strides(heads: Tensor) -> tuple[Any, ...]:
    """Strides of a map [B, H, W, heads, d], all but the last in units, and the unit."""
    strides = heads.stride()
    unit = 8 if strides[4] == 1 and all(stride % 8 == 0 for stride in strides[:4]) else 1
    return *(stride // unit for stride in strides[:4]), strides[4], tl.constexpr(unit)


def _expand_bias(bias: Tensor, bias_index: Tensor | None, heads: int, tokens: int, padded_tokens: int) -> Tensor:
    out = bias.new_empty(heads, padded_tokens, padded_tokens, dtype=torch.float32)
    arguments = {
        'bias': bias, 'index': None if bias_index is None else bias_index.contiguous(), 'out': out,
        'bias_strides': bias.stride(), 'table_rows': bias.shape[0], 'tokens': tokens,
        'ROWS': 16, 'COLUMNS': triton.next_power_of_2(padded_tokens), 'TOKENS': padded_tokens,
    }  # fmt: skip
    launch(_window_attention_bias_kernel, heads * padded_tokens // 16, arguments, num_warps=4, num_stages=1)
    return out


def _bias_gradient(dense: Tensor, bias: Tensor, bias_index: Tensor | None, tokens: int) -> Tensor:
    """From shares [shares, heads, padded tokens, padded tokens]."""
    dense = dense.sum(0)[:, :tokens, :tokens]
    if bias_index is not None:
        dense = torch.zeros(bias.shape, dtype=dense.dtype, device=dense.device).index_add_(
            0, bias_index.flatten(), dense.flatten(1).t()
        )
    return dense.to(bias.dtype).contiguous()


def _padding_gradient(grad: Tensor, padding: Tensor, qkv_layout: str) -> Tensor:
    """From those of k and v [2, heads, d], as padding is laid out; q's part is zero."""
    if padding.numel() != grad.numel():
        k, v = grad
        grad = torch.stack([torch.zeros_like(k), k, v], 0 if qkv_layout == '3hd' else 1)
    return grad.flatten().to(padding.dtype)


def _common_arguments(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    bias: Tensor | None,
    bias_index: Tensor | None,
    cosine_scale: Tensor | None,
    padding: Tensor | None,
    num_heads: int,
    window: tuple[int, int],
    dilation: tuple[int, int],
    shift: tuple[int, int],
    pad_after_shift: bool,
    qkv_layout: str,
    scale: float | None,
) -> tuple[dict[str, Any], Partition]:
    """What all kernels take, and how the map is cut."""
    q, k, v = split_heads(q, k, v, num_heads, qkv_layout)
    head_dim = k.shape[-1]
    window, dilation, shift = ((pair[0], pair[1]) for pair in (window, dilation, shift))  # ops take lists
    cut = make_partition((k.shape[1], k.shape[2]), window, dilation, shift, pad_after_shift)
    wrap = cut.size if pad_after_shift else cut.padded
    tokens = window[0] * window[1]
    tile = _tiles(tokens, head_dim, cosine_scale is not None, target_of(q)).tokens
    padded_tokens = triton.cdiv(tokens, tile) * tile
    k_padding, v_padding = _split_padding(padding, num_heads, head_dim, qkv_layout)
    arguments = {
        'q': q, 'k': k, 'v': v,
        'q_strides': _strides(q), 'k_strides': _strides(k), 'v_strides': _strides(v),
        'bias': None if bias is None else _expand_bias(bias, bias_index, num_heads, tokens, padded_tokens),
        'cosine': None if cosine_scale is None else cosine_scale.contiguous(),
        'k_padding': k_padding, 'v_padding': v_padding,
        'padding_strides': (0,) if k_padding is None else k_padding.stride(),
        'cut': (*cut.size, *cut.window, *cut.dilation, *cut.shift, *wrap, *cut.padded),
        'groups': cut.groups, 'heads': num_heads, 'tokens': tokens, 'TOKENS': padded_tokens,
        'scale': head_dim**-0.5 if scale is None else float(scale),
        'SHIFTED': max(shift) > 0, 'MASK_PADDING': padding is None and cut.padded != cut.size,
        'SHARED_Q': q.shape != k.shape,
        'HEAD_DIM': head_dim, 'D': max(16, triton.next_power_of_2(head_dim)),
    }  # fmt: skip
    return arguments, cut


class _Tiles(NamedTuple):
    """By the compilation report: what keeps programs from spilling."""

    tokens: int  # of a tile
    forward_warps: int
    backward_warps: int
    backward_stages: int


def _tiles(tokens: int, head_dim: int, cosine: bool, target: Target) -> _Tiles:
    if tokens > ONE_TILE:  # in small tiles, because the backward pass holds five at a time
        return _Tiles(32, 4, 4, 1 if head_dim > 32 else 2)
    if tokens > 32:
        return _Tiles(64, 4, 8 if target.backend == 'cuda' and (head_dim > 32 or cosine) else 4, 1)
    return _Tiles(32, 2, 2, 1) if tokens > 16 else _Tiles(16, 1, 1, 1)


def _product_flops(shape: Any, window: Any, dilation: Any) -> int:
    """Of one product of queries with keys, or weights with values, on every position of the padded map."""
    batch, height, width, channels = shape
    cut = make_partition((height, width), tuple(window), tuple(dilation), (0, 0), False)
    return 2 * batch * cut.groups * (window[0] * window[1]) ** 2 * channels


@register_flop_formula(torch.ops.attnzoo.window_attention)
def _forward_flops(*shapes: Any, out_shape: Any, **_: Any) -> int:
    return 2 * _product_flops(out_shape[0], *shapes[8:10])


@register_flop_formula(torch.ops.attnzoo.window_attention_backward)
def _backward_flops(d_out_shape: Any, _out_shape: Any, _lse_shape: Any, *shapes: Any, **_: Any) -> int:
    """The scores again, and the gradients of weights, values, keys and queries."""
    return 5 * _product_flops(d_out_shape, *shapes[8:10])
