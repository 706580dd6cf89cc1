"""What attentions share on the device: rows of maps, unit rows, the softmax's state, and the loops that they all are.

An op's kernel calls a loop and passes its geometry, as functions that the compiler takes in:

    QUERIES(group, token, geometry) -> origin_y, origin_x, y, x, real
    KEYS(image, group, tile, token, geometry, index) -> origin_y, origin_x, y, x, real
    TABLE(tables, group, head, query, key, key_real, geometry) -> what PAIR adds, which is the same in all images
    PAIR(scores, factor, table, q, image, group, head, tile, query, key, geometry, tables) -> base-2 logits
    QUERY_TILES(image, group, geometry, index) -> how many tiles of queries read a group of keys
    QUERIES_OF_KEYS(image, group, tile, token, geometry, index) -> as KEYS
    ROWS_OF_Q, ROWS_OF_DQ, Q_OF_KEYS: QUERIES and QUERIES_OF_KEYS where q and its gradient lie elsewhere than the output
    TABLE_OF_KEYS: TABLE for pairs [keys, queries]
    PAIR_OF_KEYS: PAIR for scores [keys, queries], with the key before the query

and, where it has them (`PLAIN` has what most do without):

    PREPARE(q, group, head, query, geometry, tables) -> what PAIR gets in the place of q, once for all tiles of keys
    PAIR_GRADIENT(state, d_scores, image, group, head, tile, query, key, geometry, tables) -> state, None before tile 0
    PREPARE_GRADIENT(state, q, factor, image, group, head, query, geometry, tables) -> a gradient of q, over the factor
    TURNS(share, geometry, index), GROUP_OF_TURN(share, turn, geometry, index): which groups a share of pairs sums over

A group is a number of queries that attend to the same keys. Without PAIR (None) the logits are the scores times the
factor, which must be positive then. Keys of several maps may be under one softmax: then k, v and their strides are
tuples, SOURCES says which map each tile of keys is from, and dk and dv are a launch for each map.

A place is a scalar origin and what its tokens are away from it: an address is then one scalar and what does not change
from image to image. `real` tokens are in the map; keys that are not are zeros, or rows of a filling. A program takes a
tile of one head's queries (or keys) through its share of the groups, and each group through its share of the images:
axis 0 of the grid has tiles and heads, axis 1 the shares of the images, axis 2 those of the groups. What does not
depend on the image is computed once a group.

STACKED programs take a group of several tiles, a warp each, whose keys are mostly the same lines of the cache: blocks
have one axis more in front, of tokens [1, M] come places [tiles, M] or [1, M] and origins that are numbers or
[tiles, 1]. Strides decide what are images, columns and heads. Heads that are columns, [B, H, W * heads, 1, d], are
packed into the rows of a tile, where PAIR keeps them apart; heads that are images, below each other's rows,
[heads, B * H, W, 1, d], have a table that differs by image read once for all of them.

Legend: tiles of M queries x N keys, D channels: those of a head, rounded up to a power of two. Maps are
[B, H, W, heads, d], their strides five numbers and a unit (`_triton.strides_of`), or None where they are q's; sums of
rows are [B, heads, H, W]. Logits are of base 2, the running maximum and sums float32 (FlashAttention, 2205.14135).

Imports Triton: only a kernel.py may import this.
"""

from typing import Any

import triton
import triton.language as tl

from ._triton import dot, narrow

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e30)  # finite: all logits of a row may be -inf,
SMALLEST = tl.constexpr(1e-30)  # and then the sum of its weights is 0
NORM_FLOOR = tl.constexpr(1e-12)  # that of torch.nn.functional.normalize
# They change with the size of the map: a program that is compiled for one size serves all.
NUMBERS = [f'{name}_strides' for name in ('q', 'k', 'v', 'out', 'd_out', 'dq', 'dk', 'dv', 'fill')]
NUMBERS += ['scale', 'geometry', 'size', 'images', 'groups', 'heads']
# What most ops do without: they pass PLAIN, and those that do not, more than it.
PLAIN: dict[str, Any] = {'STACKED': False, 'SUM_BY_PRODUCT': False, 'STAGES': 1}
PLAIN |= dict.fromkeys(['SOURCES', 'PREPARE', 'PAIR_GRADIENT', 'PREPARE_GRADIENT', 'TURNS', 'GROUP_OF_TURN'])


@triton.jit
def column(x):
    """A number for each row, to go with a tile."""
    return tl.expand_dims(x, -1)


@triton.jit
def along_rows(x):
    """A number for each column, to go with a tile."""
    return tl.expand_dims(x, -2)


@triton.jit
def numbered(first, COUNT: tl.constexpr, STACKED: tl.constexpr):
    """Numbers of tokens, in a stack the same of each tile."""
    if STACKED:
        return (first + tl.arange(0, COUNT))[None, :]
    else:
        return first + tl.arange(0, COUNT)


@triton.jit
def row_offsets(strides, y, x, D: tl.constexpr):
    """[tokens, D] from the origin of a place. Strides count units of elements, so that whole vectors are aligned."""
    return column((y * strides[1] + x * strides[2]) * strides[5]) + tl.arange(0, D) * strides[4]


@triton.jit
def either(strides, others):
    """Strides, or where they are None those that they are the same as: then addresses are computed once."""
    if strides is None:
        return others
    else:
        return strides


@triton.jit
def source_of(values, SOURCES: tl.constexpr, tile: tl.constexpr):
    """What a tile of keys has of a tuple of values, one for each source of keys; or the value, where there is one."""
    if SOURCES is None:
        return values
    else:
        return values[SOURCES[tile]]


@triton.jit
def present(real, HEAD_DIM: tl.constexpr, D: tl.constexpr):
    """[tokens, D]: the channels of real tokens."""
    if HEAD_DIM == D:
        return column(real) & (tl.arange(0, D) < D)
    else:
        return column(real) & (tl.arange(0, D) < HEAD_DIM)


@triton.jit
def origin(strides, image, head, y, x):
    """Of a place in an image, of which a map has less than 2**31 elements; in a stack [tiles, 1, 1]."""
    inside = y * strides[1] + x * strides[2] + head * strides[3]
    start = (tl.cast(image, tl.int64) * strides[0] + inside) * strides[5]
    if len(start.shape) == 0:
        return start
    else:
        return column(start)


@triton.jit
def sums_origin(image, head, heads, y, x, size):
    """The same among sums of rows, [B, heads, H, W]."""
    return (tl.cast(image, tl.int64) * heads + head) * (size[0] * size[1]) + (y * size[1] + x)


@triton.jit
def filling(fill, fill_strides, head, HEAD_DIM: tl.constexpr, D: tl.constexpr):
    """The channels [D] of keys or values that are not in the map."""
    channel = tl.arange(0, D)
    return tl.load(fill + (head * fill_strides[0] + channel), mask=channel < HEAD_DIM, other=0.0)


@triton.jit
def load_rows(pointer, offsets, there):
    return tl.load(pointer + offsets, mask=there, other=0.0)


@triton.jit
def load_filled(pointer, offsets, there, real, fill):
    """Rows of keys or values, and the filling where there is none."""
    rows = tl.load(pointer + offsets, mask=there, other=0.0)
    if fill is not None:
        rows = tl.where(column(real), rows, fill.to(rows.dtype))
    return rows


@triton.jit
def load_keys(pointer, strides, image, head, o_y, o_x, y, x, there, real, fill, D: tl.constexpr):
    """`load_filled` of a place in an image, where nothing of its addresses is kept from image to image."""
    start = origin(strides, image, head, o_y, o_x)
    return load_filled(pointer + start, row_offsets(strides, y, x, D), there, real, fill)


@triton.jit
def store_rows(pointer, offsets, there, value):
    tl.store(pointer + offsets, narrow(value, pointer.dtype.element_ty), mask=there)


@triton.jit
def unit_rows(x, COSINE: tl.constexpr):
    """Rows over their lengths for scores that are cosines, and 1 / length; for the others the rows, and 0."""
    if COSINE:
        exact = x.to(tl.float32)
        inverse_norm = 1.0 / tl.maximum(tl.sqrt(tl.sum(exact * exact, -1)), NORM_FLOOR)
        return narrow(exact * column(inverse_norm), x.dtype), inverse_norm
    else:
        return x, 0.0


@triton.jit
def through_unit_rows(unit, inverse_norm, grad, factor, COSINE: tl.constexpr):
    """The gradient of rows from that of factor * unit rows, and the part of the latter along each unit row.

    With a factor only, and no such part (0), where rows have the lengths that they have.
    """
    if not COSINE:
        return grad * factor, 0.0
    else:
        unit = unit.to(tl.float32)
        along = tl.sum(unit * grad, -1)
        inside = tl.where(inverse_norm < 1.0 / NORM_FLOOR, along, 0.0)
        return column(factor * inverse_norm) * (grad - unit * column(inside)), along


@triton.jit
def factor_of(scale, cosine, head):
    """What the products of queries and keys are multiplied by: a number, or a head's own."""
    if cosine is None:
        return scale
    else:
        return tl.load(cosine + head).to(tl.float32)


@triton.jit
def row_sums(weights, v, BY_PRODUCT: tl.constexpr, PRECISION: tl.constexpr):
    """Of weights; or by a product of what they are narrowed to, which is an eighth of a tensor instruction a sum."""
    if not BY_PRODUCT:
        return tl.sum(weights, -1)
    elif len(weights.shape) == 2:
        return tl.max(dot(narrow(weights, v.dtype), tl.full([weights.shape[1], 8], 1.0, v.dtype), PRECISION), -1)
    else:
        ones = tl.full([weights.shape[0], weights.shape[2], 8], 1.0, v.dtype)
        return tl.max(dot(narrow(weights, v.dtype), ones, PRECISION), -1)


@triton.jit
def logits_of(
    PAIR: tl.constexpr, scores, factor, table, prepared, image, group, head, tile, query, key, geometry, tables
):
    if PAIR is None:
        return scores * (factor * LOG2_E)
    else:
        return PAIR(scores, factor, table, prepared, image, group, head, tile, query, key, geometry, tables)


@triton.jit
def attend(
    largest, total, mean, logits, factor, v, FIRST: tl.constexpr, BY_PRODUCT: tl.constexpr, PRECISION: tl.constexpr
):
    """The state of a softmax after one more tile of logits; any number of sources of keys may follow each other.

    A factor that the logits are still without is applied to the largest and within the exponent: one instruction less.
    """
    top = tl.max(logits, -1)
    if factor is not None:
        top, logits = top * factor, logits * factor
    if FIRST:
        new_largest = tl.maximum(top, LOWEST)
        weights = tl.exp2(logits - column(new_largest))
        sums = row_sums(weights, v, BY_PRODUCT, PRECISION)
        return new_largest, sums, dot(narrow(weights, v.dtype), v, PRECISION)
    else:
        new_largest = tl.maximum(largest, top)
        weights = tl.exp2(logits - column(new_largest))
        rescale = tl.exp2(largest - new_largest)
        mean = mean * column(rescale) + dot(narrow(weights, v.dtype), v, PRECISION)
        return new_largest, total * rescale + row_sums(weights, v, BY_PRODUCT, PRECISION), mean


@triton.jit
def turns(TURNS: tl.constexpr, share, shares, groups, geometry, index):
    """First, end and step of a loop over the groups of a share."""
    if TURNS is None:
        return share, groups, shares
    else:
        return 0, TURNS(share, geometry, index), 1


@triton.jit
def group_of_turn(GROUP_OF_TURN: tl.constexpr, share, turn, geometry, index):
    if GROUP_OF_TURN is None:
        return turn
    else:
        return GROUP_OF_TURN(share, turn, geometry, index)


@triton.jit
def prepare(PREPARE: tl.constexpr, q, group, head, query, geometry, tables):
    if PREPARE is None:
        return q
    else:
        return PREPARE(q, group, head, query, geometry, tables)


@triton.jit(do_not_specialize=NUMBERS)
def attention_forward(
    q, k, v, out, lse, q_strides, k_strides, v_strides, out_strides,
    tables, index, k_fill, v_fill, fill_strides, scale, cosine, geometry, size, images, groups, heads,
    QUERIES: tl.constexpr, ROWS_OF_Q: tl.constexpr, KEYS: tl.constexpr, TABLE: tl.constexpr, PAIR: tl.constexpr,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, M: tl.constexpr, WIDTHS: tl.constexpr, TILES: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr, SOURCES: tl.constexpr, STACKED: tl.constexpr,
    PREPARE: tl.constexpr, SUM_BY_PRODUCT: tl.constexpr,
):  # fmt: skip
    """A tile of M queries against all keys of its group, which come in tiles of WIDTHS."""
    k_strides, v_strides = either(k_strides, q_strides), either(v_strides, q_strides)
    out_strides = either(out_strides, q_strides)
    head = tl.program_id(0) // TILES
    query = numbered(tl.program_id(0) % TILES * M, M, STACKED)
    factor = factor_of(scale, cosine, head)
    k_filling = None if k_fill is None else filling(k_fill, fill_strides, head, HEAD_DIM, D)
    v_filling = None if v_fill is None else filling(v_fill, fill_strides, head, HEAD_DIM, D)
    for group in tl.range(tl.program_id(2), groups, tl.num_programs(2)):
        o_y, o_x, y, x, real = QUERIES(group, query, geometry)
        out_at, out_there = row_offsets(out_strides, y, x, D), present(real, HEAD_DIM, D)
        row = y * size[1] + x
        q_y, q_x, y, x, q_real = ROWS_OF_Q(group, query, geometry)
        q_at, q_there = row_offsets(q_strides, y, x, D), present(q_real, HEAD_DIM, D)
        if len(WIDTHS) == 1:
            key = numbered(0, WIDTHS[0], STACKED)
            _y, _x, _key_y, _key_x, key_real = KEYS(0, group, 0, key, geometry, index)
            held = TABLE(tables, group, head, query, key, key_real, geometry)
        # Places of many tiles, computed once a group, would not find room in registers.
        for image in tl.range(
            tl.program_id(1), images, tl.num_programs(1), num_stages=STAGES, disable_licm=len(WIDTHS) > 2
        ):
            q_tile = load_rows(q + origin(q_strides, image, head, q_y, q_x), q_at, q_there)
            q_tile, _norm = unit_rows(q_tile, cosine is not None)
            prepared = prepare(PREPARE, q_tile, group, head, query, geometry, tables)
            largest, total, mean = None, None, None
            start = 0
            for tile in tl.static_range(len(WIDTHS)):
                key = numbered(start, WIDTHS[tile], STACKED)
                k_y, k_x, key_y, key_x, key_real = KEYS(image, group, tile, key, geometry, index)
                there = present(key_real, HEAD_DIM, D)
                keys, by = source_of(k, SOURCES, tile), source_of(k_strides, SOURCES, tile)
                k_tile = load_keys(keys, by, image, head, k_y, k_x, key_y, key_x, there, key_real, k_filling, D)
                values, by = source_of(v, SOURCES, tile), source_of(v_strides, SOURCES, tile)
                v_tile = load_keys(values, by, image, head, k_y, k_x, key_y, key_x, there, key_real, v_filling, D)
                k_tile, _norm = unit_rows(k_tile, cosine is not None)
                if len(WIDTHS) == 1:
                    table = held
                else:
                    table = TABLE(tables, group, head, query, key, key_real, geometry)
                scores = dot(q_tile, tl.trans(k_tile), PRECISION)
                logits, left = scores, factor * LOG2_E
                if PAIR is not None:
                    logits = PAIR(
                        scores, factor, table, prepared, image, group, head, tile, query, key, geometry, tables
                    )
                    left = None
                largest, total, mean = attend(
                    largest, total, mean, logits, left, v_tile, tile == 0, SUM_BY_PRODUCT, PRECISION
                )
                start = start + WIDTHS[tile]
            mean *= column(1.0 / tl.maximum(total, SMALLEST))
            store_rows(out + origin(out_strides, image, head, o_y, o_x), out_at, out_there, mean)
            if lse is not None:
                sums = lse + sums_origin(image, head, heads, o_y, o_x, size)
                tl.store(sums + row, largest + tl.log2(total), mask=real)


@triton.jit
def score_gradients(logits, lse, do_tile, v_tile, delta, PRECISION: tl.constexpr):
    """Weights [M, N] and the gradients of the scores, from the sums of the rows that forward and `backward_q` kept."""
    weights = tl.exp2(logits - column(lse))
    return weights, weights * (dot(do_tile, tl.trans(v_tile), PRECISION) - column(delta))


@triton.jit(do_not_specialize=NUMBERS)
def attention_backward_q(
    q, k, v, out, lse, d_out, dq, delta, d_cosine,
    q_strides, k_strides, v_strides, out_strides, d_out_strides, dq_strides,
    tables, index, k_fill, v_fill, fill_strides, scale, cosine, geometry, size, images, groups, heads,
    QUERIES: tl.constexpr, ROWS_OF_Q: tl.constexpr, ROWS_OF_DQ: tl.constexpr, KEYS: tl.constexpr,
    TABLE: tl.constexpr, PAIR: tl.constexpr,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, M: tl.constexpr, WIDTHS: tl.constexpr, TILES: tl.constexpr,
    PRECISION: tl.constexpr, SOURCES: tl.constexpr, STACKED: tl.constexpr,
    PREPARE: tl.constexpr, PAIR_GRADIENT: tl.constexpr, PREPARE_GRADIENT: tl.constexpr,
):  # fmt: skip
    """dq of a tile of M queries, delta, which lies as lse does, and a program's share of the gradient of the factor."""
    k_strides, v_strides = either(k_strides, q_strides), either(v_strides, q_strides)
    out_strides, dq_strides = either(out_strides, q_strides), either(dq_strides, q_strides)
    d_out_strides = either(d_out_strides, out_strides)
    head = tl.program_id(0) // TILES
    query = numbered(tl.program_id(0) % TILES * M, M, STACKED)
    factor = factor_of(scale, cosine, head)
    k_filling = None if k_fill is None else filling(k_fill, fill_strides, head, HEAD_DIM, D)
    v_filling = None if v_fill is None else filling(v_fill, fill_strides, head, HEAD_DIM, D)
    factor_sum = tl.zeros([M], tl.float32)
    for group in tl.range(tl.program_id(2), groups, tl.num_programs(2)):
        o_y, o_x, y, x, real = QUERIES(group, query, geometry)
        row = y * size[1] + x
        there = present(real, HEAD_DIM, D)
        out_at, d_out_at = row_offsets(out_strides, y, x, D), row_offsets(d_out_strides, y, x, D)
        q_y, q_x, y, x, q_real = ROWS_OF_Q(group, query, geometry)
        q_at, q_there = row_offsets(q_strides, y, x, D), present(q_real, HEAD_DIM, D)
        dq_y, dq_x, y, x, q_real = ROWS_OF_DQ(group, query, geometry)
        dq_at = row_offsets(dq_strides, y, x, D)
        for image in tl.range(tl.program_id(1), images, tl.num_programs(1), disable_licm=len(WIDTHS) > 2):
            q_tile = load_rows(q + origin(q_strides, image, head, q_y, q_x), q_at, q_there)
            q_tile, q_norm = unit_rows(q_tile, cosine is not None)
            prepared = prepare(PREPARE, q_tile, group, head, query, geometry, tables)
            do_tile = load_rows(d_out + origin(d_out_strides, image, head, o_y, o_x), d_out_at, there)
            out_tile = load_rows(out + origin(out_strides, image, head, o_y, o_x), out_at, there)
            sums = sums_origin(image, head, heads, o_y, o_x, size)
            row_lse = tl.load(lse + sums + row, mask=real, other=float('inf'))  # no weights where there is no query
            row_delta = tl.sum(out_tile.to(tl.float32) * do_tile.to(tl.float32), -1)
            tl.store(delta + sums + row, row_delta, mask=real)
            grad, of_prepared = tl.zeros(q_tile.shape, tl.float32), None
            start = 0
            for tile in tl.static_range(len(WIDTHS)):
                key = numbered(start, WIDTHS[tile], STACKED)
                k_y, k_x, key_y, key_x, key_real = KEYS(image, group, tile, key, geometry, index)
                key_there = present(key_real, HEAD_DIM, D)
                keys, by = source_of(k, SOURCES, tile), source_of(k_strides, SOURCES, tile)
                k_tile = load_keys(keys, by, image, head, k_y, k_x, key_y, key_x, key_there, key_real, k_filling, D)
                values, by = source_of(v, SOURCES, tile), source_of(v_strides, SOURCES, tile)
                v_tile = load_keys(values, by, image, head, k_y, k_x, key_y, key_x, key_there, key_real, v_filling, D)
                k_tile, _norm = unit_rows(k_tile, cosine is not None)
                table = TABLE(tables, group, head, query, key, key_real, geometry)
                scores = dot(q_tile, tl.trans(k_tile), PRECISION)
                logits = logits_of(
                    PAIR, scores, factor, table, prepared, image, group, head, tile, query, key, geometry, tables
                )
                _weights, d_scores = score_gradients(logits, row_lse, do_tile, v_tile, row_delta, PRECISION)
                if PAIR_GRADIENT is not None:
                    of_prepared = PAIR_GRADIENT(
                        of_prepared, d_scores, image, group, head, tile, query, key, geometry, tables
                    )
                grad += dot(narrow(d_scores, k_tile.dtype), k_tile, PRECISION)
                start = start + WIDTHS[tile]
            if PREPARE_GRADIENT is not None:
                grad += PREPARE_GRADIENT(of_prepared, q_tile, factor, image, group, head, query, geometry, tables)
            grad, along = through_unit_rows(q_tile, q_norm, grad, factor, cosine is not None)
            if d_cosine is not None:
                factor_sum += tl.sum(along, 0) if STACKED else along
            store_rows(dq + origin(dq_strides, image, head, dq_y, dq_x), dq_at, q_there, grad)
    if d_cosine is not None:
        share = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
        tl.store(d_cosine + (share * TILES + tl.program_id(0) % TILES) * heads + head, tl.sum(factor_sum, 0))


@triton.jit(do_not_specialize=NUMBERS)
def attention_backward_kv(
    q, k, v, lse, delta, d_out, dk, dv, d_k_fill, d_v_fill,
    q_strides, k_strides, v_strides, d_out_strides, dk_strides, dv_strides,
    tables, index, k_fill, v_fill, fill_strides, scale, cosine, geometry, size, images, groups, heads,
    KEY_GROUP: tl.constexpr, QUERY_TILES: tl.constexpr, QUERIES_OF_KEYS: tl.constexpr, Q_OF_KEYS: tl.constexpr,
    TABLE_OF_KEYS: tl.constexpr, PAIR_OF_KEYS: tl.constexpr,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, TILES: tl.constexpr,
    PRECISION: tl.constexpr, STACKED: tl.constexpr, PREPARE: tl.constexpr,
):  # fmt: skip
    """dk and dv of a tile of N keys from the tiles of M queries that attend to them, and its share of the filling's."""
    k_strides, v_strides = either(k_strides, q_strides), either(v_strides, q_strides)
    d_out_strides, dk_strides = either(d_out_strides, q_strides), either(dk_strides, k_strides)
    dv_strides = either(dv_strides, dk_strides)
    head = tl.program_id(0) // TILES
    key = numbered(tl.program_id(0) % TILES * N, N, STACKED)
    factor = factor_of(scale, cosine, head)
    k_filling = None if k_fill is None else filling(k_fill, fill_strides, head, HEAD_DIM, D)
    v_filling = None if v_fill is None else filling(v_fill, fill_strides, head, HEAD_DIM, D)
    k_fill_sum, v_fill_sum = tl.zeros([D], tl.float32), tl.zeros([D], tl.float32)
    for group in tl.range(tl.program_id(2), groups, tl.num_programs(2)):
        k_y, k_x, key_y, key_x, real = KEY_GROUP(group, key, geometry)
        k_at, v_at = row_offsets(k_strides, key_y, key_x, D), row_offsets(v_strides, key_y, key_x, D)
        dk_at, dv_at = row_offsets(dk_strides, key_y, key_x, D), row_offsets(dv_strides, key_y, key_x, D)
        there = present(real, HEAD_DIM, D)
        for image in tl.range(tl.program_id(1), images, tl.num_programs(1)):
            k_tile = load_filled(k + origin(k_strides, image, head, k_y, k_x), k_at, there, real, k_filling)
            v_tile = load_filled(v + origin(v_strides, image, head, k_y, k_x), v_at, there, real, v_filling)
            k_tile, k_norm = unit_rows(k_tile, cosine is not None)
            dk_tile, dv_tile = tl.zeros(k_tile.shape, tl.float32), tl.zeros(k_tile.shape, tl.float32)
            for tile in tl.range(0, QUERY_TILES(image, group, geometry, index)):
                query = numbered(tile * M, M, STACKED)
                o_y, o_x, y, x, query_real = QUERIES_OF_KEYS(image, group, tile, query, geometry, index)
                do_there = present(query_real, HEAD_DIM, D)
                d_out_at = row_offsets(d_out_strides, y, x, D)
                sums = sums_origin(image, head, heads, o_y, o_x, size) + (y * size[1] + x)
                do_tile = load_rows(d_out + origin(d_out_strides, image, head, o_y, o_x), d_out_at, do_there)
                q_y, q_x, y, x, q_real = Q_OF_KEYS(image, group, tile, query, geometry, index)
                q_at, q_there = row_offsets(q_strides, y, x, D), present(q_real, HEAD_DIM, D)
                q_tile = load_rows(q + origin(q_strides, image, head, q_y, q_x), q_at, q_there)
                q_tile, _norm = unit_rows(q_tile, cosine is not None)
                prepared = prepare(PREPARE, q_tile, group, head, query, geometry, tables)
                row_lse = tl.load(lse + sums, mask=query_real, other=float('inf'))
                row_delta = tl.load(delta + sums, mask=query_real, other=0.0)
                table = TABLE_OF_KEYS(tables, group, head, query, key, real, geometry)
                scores = dot(k_tile, tl.trans(q_tile), PRECISION)
                logits = logits_of(
                    PAIR_OF_KEYS, scores, factor, table,
                    prepared, image, group, head, tile, key, query, geometry, tables,
                )  # fmt: skip
                weights = tl.exp2(logits - along_rows(row_lse))
                dv_tile += dot(narrow(weights, do_tile.dtype), do_tile, PRECISION)
                d_scores = weights * (dot(v_tile, tl.trans(do_tile), PRECISION) - along_rows(row_delta))
                dk_tile += dot(narrow(d_scores, q_tile.dtype), q_tile, PRECISION)
            dk_tile, _along = through_unit_rows(k_tile, k_norm, dk_tile, factor, cosine is not None)
            store_rows(dk + origin(dk_strides, image, head, k_y, k_x), dk_at, there, dk_tile)
            store_rows(dv + origin(dv_strides, image, head, k_y, k_x), dv_at, there, dv_tile)
            if d_k_fill is not None:
                k_fill_sum += tl.sum(tl.where(column(real), 0.0, dk_tile), 0)
                v_fill_sum += tl.sum(tl.where(column(real), 0.0, dv_tile), 0)
    if d_k_fill is not None:
        share = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * TILES + tl.program_id(0) % TILES
        store_fill_share(d_k_fill, d_v_fill, k_fill_sum, v_fill_sum, share, head, fill_strides, HEAD_DIM, D)


@triton.jit
def store_fill_share(d_k_fill, d_v_fill, dk, dv, share, head, fill_strides, HEAD_DIM: tl.constexpr, D: tl.constexpr):
    """One program's share of the gradients of the fillings; shares lie one behind the other, as the fillings lie."""
    channel = tl.arange(0, D)
    place = share * fill_strides[1] + head * fill_strides[0] + channel
    tl.store(d_k_fill + place, dk, mask=channel < HEAD_DIM)
    tl.store(d_v_fill + place, dv, mask=channel < HEAD_DIM)


@triton.jit(do_not_specialize=NUMBERS)
def attention_backward_pairs(
    q, k, v, lse, delta, d_out, d_pairs,
    q_strides, k_strides, v_strides, d_out_strides,
    tables, index, k_fill, v_fill, fill_strides, scale, cosine, geometry, size, images, groups, heads,
    QUERIES: tl.constexpr, ROWS_OF_Q: tl.constexpr, KEYS: tl.constexpr, TABLE: tl.constexpr, PAIR: tl.constexpr,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    TILES: tl.constexpr, KEY_TILES: tl.constexpr, PRECISION: tl.constexpr,
    PREPARE: tl.constexpr, TURNS: tl.constexpr, GROUP_OF_TURN: tl.constexpr,
):  # fmt: skip
    """A share of the sum over groups of the gradients of M x N logits: [shares, heads, queries, keys]."""
    k_strides, v_strides = either(k_strides, q_strides), either(v_strides, q_strides)
    d_out_strides = either(d_out_strides, q_strides)
    tile = tl.program_id(0) % KEY_TILES
    head = tl.program_id(0) // (TILES * KEY_TILES)
    query = tl.program_id(0) // KEY_TILES % TILES * M + tl.arange(0, M)
    key = tile * N + tl.arange(0, N)
    factor = factor_of(scale, cosine, head)
    k_filling = None if k_fill is None else filling(k_fill, fill_strides, head, HEAD_DIM, D)
    v_filling = None if v_fill is None else filling(v_fill, fill_strides, head, HEAD_DIM, D)
    total = tl.zeros([M, N], tl.float32)
    first, end, step = turns(TURNS, tl.program_id(2), tl.num_programs(2), groups, geometry, index)
    for turn in tl.range(first, end, step):
        group = group_of_turn(GROUP_OF_TURN, tl.program_id(2), turn, geometry, index)
        o_y, o_x, y, x, real = QUERIES(group, query, geometry)
        row = y * size[1] + x
        d_out_at, there = row_offsets(d_out_strides, y, x, D), present(real, HEAD_DIM, D)
        q_y, q_x, y, x, q_real = ROWS_OF_Q(group, query, geometry)
        q_at, q_there = row_offsets(q_strides, y, x, D), present(q_real, HEAD_DIM, D)
        k_y, k_x, y, x, key_real = KEYS(0, group, tile, key, geometry, index)
        k_at, v_at = row_offsets(k_strides, y, x, D), row_offsets(v_strides, y, x, D)
        key_there = present(key_real, HEAD_DIM, D)
        table = TABLE(tables, group, head, query, key, key_real, geometry)
        for image in tl.range(tl.program_id(1), images, tl.num_programs(1)):
            q_tile = load_rows(q + origin(q_strides, image, head, q_y, q_x), q_at, q_there)
            do_tile = load_rows(d_out + origin(d_out_strides, image, head, o_y, o_x), d_out_at, there)
            k_tile = load_filled(k + origin(k_strides, image, head, k_y, k_x), k_at, key_there, key_real, k_filling)
            v_tile = load_filled(v + origin(v_strides, image, head, k_y, k_x), v_at, key_there, key_real, v_filling)
            sums = sums_origin(image, head, heads, o_y, o_x, size) + row
            row_lse = tl.load(lse + sums, mask=real, other=float('inf'))
            row_delta = tl.load(delta + sums, mask=real, other=0.0)
            q_tile, _norm = unit_rows(q_tile, cosine is not None)
            k_tile, _norm = unit_rows(k_tile, cosine is not None)
            prepared = prepare(PREPARE, q_tile, group, head, query, geometry, tables)
            scores = dot(q_tile, tl.trans(k_tile), PRECISION)
            logits = logits_of(
                PAIR, scores, factor, table, prepared, image, group, head, tile, query, key, geometry, tables
            )
            _weights, d_scores = score_gradients(logits, row_lse, do_tile, v_tile, row_delta, PRECISION)
            total += d_scores
    share = tl.cast(tl.program_id(2) * tl.num_programs(1) + tl.program_id(1), tl.int64)
    place = (share * heads + head) * (TILES * M * KEY_TILES * N)
    tl.store(d_pairs + place + (query[:, None] * (KEY_TILES * N) + key[None, :]), total)


@triton.jit(do_not_specialize=NUMBERS)
def attention_backward_alone(
    q, k, v, d_out, dq, dk, dv, d_pairs, d_cosine, d_k_fill, d_v_fill,
    q_strides, k_strides, v_strides, d_out_strides, dq_strides, dk_strides, dv_strides,
    tables, index, k_fill, v_fill, fill_strides, scale, cosine, geometry, size, images, groups, heads,
    QUERIES: tl.constexpr, ROWS_OF_Q: tl.constexpr, ROWS_OF_DQ: tl.constexpr, KEYS: tl.constexpr,
    TABLE: tl.constexpr, PAIR: tl.constexpr,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All gradients of groups of up to N tokens that attend to each other alone: nothing of forward is read.

    PAIR gets q itself here.
    """
    k_strides, v_strides = either(k_strides, q_strides), either(v_strides, q_strides)
    d_out_strides, dq_strides = either(d_out_strides, q_strides), either(dq_strides, q_strides)
    dk_strides = either(dk_strides, k_strides)
    dv_strides = either(dv_strides, dk_strides)
    head = tl.program_id(0)
    token = tl.arange(0, N)
    factor = factor_of(scale, cosine, head)
    pair_sum = tl.zeros([N, N], tl.float32)
    factor_sum = tl.zeros([N], tl.float32)
    k_fill_sum, v_fill_sum = tl.zeros([D], tl.float32), tl.zeros([D], tl.float32)
    for group in tl.range(tl.program_id(2), groups, tl.num_programs(2)):
        o_y, o_x, y, x, real = QUERIES(group, token, geometry)
        d_out_at, there = row_offsets(d_out_strides, y, x, D), present(real, HEAD_DIM, D)
        k_y, k_x, y, x, key_real = KEYS(0, group, 0, token, geometry, index)
        k_at, v_at = row_offsets(k_strides, y, x, D), row_offsets(v_strides, y, x, D)
        dk_at, dv_at = row_offsets(dk_strides, y, x, D), row_offsets(dv_strides, y, x, D)
        key_there = present(key_real, HEAD_DIM, D)
        q_y, q_x, y, x, q_real = ROWS_OF_Q(group, token, geometry)
        q_at, q_there = row_offsets(q_strides, y, x, D), present(q_real, HEAD_DIM, D)
        dq_y, dq_x, y, x, _real = ROWS_OF_DQ(group, token, geometry)
        dq_at = row_offsets(dq_strides, y, x, D)
        if d_k_fill is None:
            table = TABLE(tables, group, head, token, token, key_real, geometry)
        for image in tl.range(tl.program_id(1), images, tl.num_programs(1), disable_licm=d_k_fill is not None):
            if d_k_fill is not None:  # there are no registers to keep it in
                table = TABLE(tables, group, head, token, token, key_real, geometry)
            q_tile = load_rows(q + origin(q_strides, image, head, q_y, q_x), q_at, q_there)
            k_filling = None if k_fill is None else filling(k_fill, fill_strides, head, HEAD_DIM, D)
            v_filling = None if v_fill is None else filling(v_fill, fill_strides, head, HEAD_DIM, D)
            k_tile = load_filled(k + origin(k_strides, image, head, k_y, k_x), k_at, key_there, key_real, k_filling)
            v_tile = load_filled(v + origin(v_strides, image, head, k_y, k_x), v_at, key_there, key_real, v_filling)
            do_tile = load_rows(d_out + origin(d_out_strides, image, head, o_y, o_x), d_out_at, there)
            q_tile, q_norm = unit_rows(q_tile, cosine is not None)
            k_tile, k_norm = unit_rows(k_tile, cosine is not None)
            scores = dot(q_tile, tl.trans(k_tile), PRECISION)
            logits = logits_of(
                PAIR, scores, factor, table, q_tile, image, group, head, 0, token, token, geometry, tables
            )
            # Rows of no query have weights as well, but no d_out: they give nothing.
            weights = tl.exp2(logits - tl.maximum(tl.max(logits, 1), LOWEST)[:, None])
            weights *= (1.0 / tl.maximum(tl.sum(weights, 1), SMALLEST))[:, None]
            d_weights = dot(do_tile, tl.trans(v_tile), PRECISION)
            d_scores = weights * (d_weights - tl.sum(weights * d_weights, 1)[:, None])
            if d_pairs is not None:
                pair_sum += d_scores
            dv_tile = dot(tl.trans(narrow(weights, do_tile.dtype)), do_tile, PRECISION)
            store_rows(dv + origin(dv_strides, image, head, k_y, k_x), dv_at, key_there, dv_tile)
            dk_tile = dot(tl.trans(narrow(d_scores, q_tile.dtype)), q_tile, PRECISION)
            dk_tile, _along = through_unit_rows(k_tile, k_norm, dk_tile, factor, cosine is not None)
            store_rows(dk + origin(dk_strides, image, head, k_y, k_x), dk_at, key_there, dk_tile)
            if d_k_fill is not None:
                k_fill_sum += tl.sum(tl.where(key_real[:, None], 0.0, dk_tile), 0)
                v_fill_sum += tl.sum(tl.where(key_real[:, None], 0.0, dv_tile), 0)
            dq_tile = dot(narrow(d_scores, k_tile.dtype), k_tile, PRECISION)
            dq_tile, along = through_unit_rows(q_tile, q_norm, dq_tile, factor, cosine is not None)
            if d_cosine is not None:
                factor_sum += along
            store_rows(dq + origin(dq_strides, image, head, dq_y, dq_x), dq_at, q_there, dq_tile)
    share = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    if d_pairs is not None:
        place = (tl.cast(share, tl.int64) * heads + head) * (N * N)
        tl.store(d_pairs + place + (token[:, None] * N + token[None, :]), pair_sum)
    if d_cosine is not None:
        tl.store(d_cosine + share * heads + head, tl.sum(factor_sum, 0))
    if d_k_fill is not None:
        store_fill_share(d_k_fill, d_v_fill, k_fill_sum, v_fill_sum, share, head, fill_strides, HEAD_DIM, D)
