"""Attentions that are not windows, on the loops of `_attention.py`: geometries, and how they are run on small maps.

Routed attention, whose readers of a region of keys are found by an index, also with the heads packed into the rows of a
tile; neighborhood attention, whose keys lie around a tile of queries, also with tiles in stacks, and its bias gradient
by kinds of tiles; aggregated attention, which has keys of two maps; halo attention, whose relative logits depend on the
query; attention to keys under a mask, which is read once for all heads.

Imports Triton.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from attnzoo.kernels._attention import (
    LOG2_E,
    PLAIN,
    along_rows,
    attention_backward_kv,
    attention_backward_pairs,
    attention_backward_q,
    attention_forward,
    column,
)
from attnzoo.kernels._launch import launch, target_of
from attnzoo.kernels._triton import constant, dot, narrow, strides_of

SIDE = 4  # of a tile of queries, or of a region or a block: 16 tokens
KERNEL = 5  # of a neighborhood: a tile of queries has 8 x 8 keys
STACK = 4  # tiles of a stack
HEADS, HEAD_DIM = 2, 16
BLOCK_WINDOW = 6  # keys of a block of queries with its halo of 1, along an axis: a tile has 8 x 8
TOKENS_ = tl.constexpr(SIDE**2)
SIDE_, KERNEL_, STACK_ = tl.constexpr(SIDE), tl.constexpr(KERNEL), tl.constexpr(STACK)
HEADS_, HEAD_DIM_, WINDOW_ = tl.constexpr(HEADS), tl.constexpr(HEAD_DIM), tl.constexpr(BLOCK_WINDOW)
REACH_ = tl.constexpr(SIDE + KERNEL - 1)  # keys of a tile of queries, along an axis
READERS_ = tl.constexpr(SIDE + 2 * (KERNEL - 1))  # queries that may read a tile of keys, along an axis

# A geometry is (tiles along the width, height, width, ...), then the numbers that are known when a kernel is compiled.
# In sums of a number and a block the block comes first: the interpreter takes a constant and a block for a constant.


@triton.jit
def tile_at(group, token, geometry):
    """First row and column of a tile. A stack is a column of the map: its tiles lie one below the other."""
    if len(token.shape) == 1:
        return group // geometry[0][0] * SIDE_, group % geometry[0][0] * SIDE_
    else:
        return tl.arange(0, STACK_)[:, None] * SIDE_, group * SIDE_


@triton.jit
def tile_of_map(group, token, geometry):
    y, x = tile_at(group, token, geometry)
    row = token // SIDE_
    return y, x, row, token % SIDE_, (token < TOKENS_) & (y + row < geometry[0][1])


@triton.jit
def plain_pair(scores, factor, table, prepared, image, group, head, tile, query, key, geometry, tables):
    return scores * (factor * LOG2_E) + table


@triton.jit
def no_table(tables, group, head, query, key, key_real, geometry):
    return 0.0


# Routed attention: index holds routes [B, R, K], the regions that read a region one behind the other, [B, R * K], and
# where those of each begin, [B, R + 1]. Where heads are packed, a region is 2 x 4 tokens, and of a map
# [B, H, W, heads, d] the columns and heads are taken as columns, [B, H, W * heads, 1, d]: a tile holds all heads.


@triton.jit
def region_of_map(region, token, geometry):
    if geometry[1]:
        head, token = token // (TOKENS_ // HEADS_), token % (TOKENS_ // HEADS_)
        y, x = region // geometry[0][0] * (SIDE_ // HEADS_), region % geometry[0][0] * (SIDE_ * HEADS_)
        return y, x, token // SIDE_, token % SIDE_ * HEADS_ + head, head < HEADS_
    else:
        return tile_of_map(region, token, geometry)


@triton.jit
def region_of_group(group, token, geometry):
    return region_of_map(group, token, geometry)


@triton.jit
def routed_keys(image, group, tile, token, geometry, index):
    regions, top_k = geometry[0][3], geometry[0][4]
    region = tl.load(index[0] + (image * regions + group) * top_k + tile)
    return region_of_map(region, token - tile * TOKENS_, geometry)


@triton.jit
def readers_of_region(image, group, geometry, index):
    start = index[2] + image * (geometry[0][3] + 1) + group
    return tl.load(start + 1) - tl.load(start)


@triton.jit
def queries_of_region(image, group, tile, token, geometry, index):
    regions, top_k = geometry[0][3], geometry[0][4]
    start = tl.load(index[2] + image * (regions + 1) + group)
    region = tl.load(index[1] + image * regions * top_k + start + tile)
    return region_of_map(region, token - tile * TOKENS_, geometry)


@triton.jit
def pair_of_a_head(scores, factor, table, prepared, image, group, head, tile, query, key, geometry, tables):
    of_head = TOKENS_ // HEADS_
    same = column(query % TOKENS_ // of_head) == along_rows(key % TOKENS_ // of_head)
    return tl.where(same, scores * (factor * LOG2_E), float('-inf'))


# Neighborhood attention: a table of biases [heads, 2 * KERNEL - 1, 2 * KERNEL - 1].


@triton.jit
def first_key(group, token, geometry):
    """Of the keys of a tile of queries."""
    y, x = tile_at(group, token, geometry)
    y = tl.minimum(tl.maximum(y - KERNEL_ // 2, 0), geometry[0][1] - REACH_)
    return y, tl.minimum(tl.maximum(x - KERNEL_ // 2, 0), geometry[0][2] - REACH_)


@triton.jit
def neighbor_keys(image, group, tile, token, geometry, index):
    y, x = first_key(group, token, geometry)
    return y, x, token // REACH_, token % REACH_, token < REACH_ * REACH_


@triton.jit
def bias_of(tables, head, query_y, query_x, key_y, key_x, real, geometry):
    """Base-2 bias of keys that are in the queries' neighborhoods, -inf of the others."""
    height, width = geometry[0][1], geometry[0][2]
    from_y = tl.minimum(tl.maximum(query_y - KERNEL_ // 2, 0), height - KERNEL_)
    from_x = tl.minimum(tl.maximum(query_x - KERNEL_ // 2, 0), width - KERNEL_)
    near = real & (key_y >= from_y) & (key_y < from_y + KERNEL_) & (key_x >= from_x) & (key_x < from_x + KERNEL_)
    side = 2 * KERNEL_ - 1
    place = (head * side + key_y - query_y + KERNEL_ - 1) * side + key_x - query_x + KERNEL_ - 1
    return tl.where(near, tl.load(tables + place, mask=near, other=0.0) * LOG2_E, float('-inf'))


@triton.jit
def neighbor_table(tables, group, head, query, key, key_real, geometry):
    tile_y, tile_x, y, x, real = tile_of_map(group, query, geometry)
    first_y, first_x = first_key(group, key, geometry)
    key_y, key_x = along_rows(key // REACH_ + first_y), along_rows(key % REACH_ + first_x)
    return bias_of(tables, head, column(y + tile_y), column(x + tile_x), key_y, key_x, column(real), geometry)


@triton.jit
def reader_tiles(image, group, geometry, index):
    return geometry[1]


@triton.jit
def neighbor_readers(image, group, tile, token, geometry, index):
    tile_y, tile_x = tile_at(group, token, geometry)
    y, x = token // READERS_ - (KERNEL_ - 1) + tile_y, token % READERS_ - (KERNEL_ - 1) + tile_x
    inside = (y >= 0) & (y < geometry[0][1]) & (x >= 0) & (x < geometry[0][2])
    return 0, 0, y, x, inside & (token < READERS_ * READERS_)


@triton.jit
def neighbor_table_of_keys(tables, group, head, query, key, key_real, geometry):
    tile_y, tile_x, y, x, _real = tile_of_map(group, key, geometry)
    _y, _x, query_y, query_x, real = neighbor_readers(0, group, 0, query, geometry, None)
    query_y, query_x = along_rows(query_y), along_rows(query_x)
    return bias_of(tables, head, query_y, query_x, column(y + tile_y), column(x + tile_x), along_rows(real), geometry)


# The kinds of its tiles: in the first row of tiles, one between or the last; in the first column or the last, of two.


@triton.jit
def tiles_of_kind(share, geometry, index):
    rows = geometry[0][1] // SIDE_
    return tl.where(share // 2 == 1, rows - 2, 1)


@triton.jit
def tile_of_kind(share, turn, geometry, index):
    row = tl.where(share // 2 == 2, geometry[0][1] // SIDE_ - 1, share // 2 + turn)
    return row * 2 + share % 2


# Aggregated attention: the keys around a query and those of a small map of 4 x 4, under one softmax.


@triton.jit
def keys_of_two(image, group, tile, token, geometry, index):
    if tile == 0:
        return neighbor_keys(image, group, tile, token, geometry, index)
    else:
        return tile_of_map(0, token - REACH_ * REACH_, geometry)


@triton.jit
def pair_of_two(scores, factor, table, prepared, image, group, head, tile, query, key, geometry, tables):
    if tile == 0:
        table = neighbor_table(tables, group, head, query, key, None, geometry)
    return scores * (factor * LOG2_E) + table


@triton.jit
def small_map(group, token, geometry):
    return tile_of_map(0, token, geometry)


@triton.jit
def all_tiles(image, group, geometry, index):
    return geometry[2]


@triton.jit
def any_queries(image, group, tile, token, geometry, index):
    return tile_of_map(tile, token - tile * TOKENS_, geometry)


# Halo attention: relative logits of a query by distance along the height and the width, tables [2, 16, HEAD_DIM].


@triton.jit
def relative_table(tables, axis: tl.constexpr, dtype: tl.constexpr):
    place = column(tl.arange(0, TOKENS_)) * HEAD_DIM_ + tl.arange(0, HEAD_DIM_)
    return tl.load(tables + axis * (TOKENS_ * HEAD_DIM_) + place).to(dtype)


@triton.jit
def relative_logits(q, group, head, query, geometry, tables):
    by_row = dot(q, tl.trans(relative_table(tables, 0, q.dtype)), 'ieee')
    return by_row, dot(q, tl.trans(relative_table(tables, 1, q.dtype)), 'ieee')


@triton.jit
def halo_keys(image, group, tile, token, geometry, index):
    y, x, _y, _x, _real = tile_of_map(group, token, geometry)
    row, place = token // 8, token % 8
    y, x = y - 1, x - 1
    inside = (y + row >= 0) & (y + row < geometry[0][1]) & (x + place >= 0) & (x + place < geometry[0][2])
    return y, x, row, place, inside & (row < WINDOW_) & (place < WINDOW_)


@triton.jit
def halo_table(tables, group, head, query, key, key_real, geometry):
    return along_rows(tl.where((key // 8 < WINDOW_) & (key % 8 < WINDOW_), 0.0, float('-inf')))


@triton.jit
def at_distance(by_row, by_place, row, place, query):
    """[queries, keys] of relative logits [queries, 16], for keys in a row and place of the queries' window."""
    rows = along_rows(row) - column(query % TOKENS_ // SIDE_) + (WINDOW_ - 1)
    places = along_rows(place) - column(query % SIDE_) + (WINDOW_ - 1)
    return tl.gather(by_row, rows & 15, 1) + tl.gather(by_place, places & 15, 1)


@triton.jit
def halo_pair(scores, factor, table, prepared, image, group, head, tile, query, key, geometry, tables):
    relative = at_distance(prepared[0], prepared[1], key // 8, key % 8, query)
    return (scores * factor + relative) * LOG2_E + table


@triton.jit
def halo_pair_gradient(state, d_scores, image, group, head, tile, query, key, geometry, tables):
    """Of the relative logits: summed over the keys of a row, and of a column, of the window."""
    of_row = column(key // 8) == tl.arange(0, 16)
    of_place = column(key % 8) == tl.arange(0, 16)
    rows = dot(d_scores, of_row.to(tl.float32), 'ieee')
    places = dot(d_scores, of_place.to(tl.float32), 'ieee')
    if tile == 0:
        return rows, places
    else:
        return state[0] + rows, state[1] + places


@triton.jit
def by_distance(of_keys, query_place):
    """[queries, 16]: sums over rows (or columns) of keys, moved to their distances from the query."""
    place = along_rows(tl.arange(0, 16)) + column(query_place) - (WINDOW_ - 1)
    return tl.where((place >= 0) & (place < WINDOW_), tl.gather(of_keys, place & 15, 1), 0.0)


@triton.jit
def relative_gradient(state, q, factor, image, group, head, query, geometry, tables):
    by_row = narrow(by_distance(state[0], query % TOKENS_ // SIDE_), q.dtype)
    by_place = narrow(by_distance(state[1], query % SIDE_), q.dtype)
    grad = dot(by_row, relative_table(tables, 0, q.dtype), 'ieee')
    return (grad + dot(by_place, relative_table(tables, 1, q.dtype), 'ieee')) * (1.0 / factor)


@triton.jit
def halo_readers(image, group, tile, token, geometry, index):
    """The block of queries that the keys' own is, or one of the eight around it."""
    y = group // geometry[0][0] * SIDE_ + (tile // 3 - 1) * SIDE_
    x = group % geometry[0][0] * SIDE_ + (tile % 3 - 1) * SIDE_
    row, place = token % TOKENS_ // SIDE_, token % SIDE_
    inside = (y + row >= 0) & (y + row < geometry[0][1]) & (x + place >= 0) & (x + place < geometry[0][2])
    return y, x, row, place, inside


@triton.jit
def halo_pair_of_keys(scores, factor, table, prepared, image, group, head, tile, key, query, geometry, tables):
    row, place = key // SIDE_ - (tile // 3 - 1) * SIDE_ + 1, key % SIDE_ - (tile % 3 - 1) * SIDE_ + 1
    inside = (row >= 0) & (row < WINDOW_) & (place >= 0) & (place < WINDOW_)
    relative = at_distance(prepared[0], prepared[1], row, place, query)
    return tl.where(column(inside), (scores * factor + tl.trans(relative)) * LOG2_E, float('-inf'))


# Attention under a mask [B, queries, keys], which a program reads once for all heads: the heads are its images, and
# the images of the map lie below each other, [heads, B * H, W, 1, d].


@triton.jit
def tile_of_image(group, token, geometry):
    tiles = geometry[0][3]
    y, x, row, place, real = tile_of_map(group % tiles, token, geometry)
    return group // tiles * geometry[0][1] + y, x, row, place, real


@triton.jit
def keys_of_image(image, group, tile, token, geometry, index):
    width = geometry[0][2]
    return group // geometry[0][3] * geometry[0][1], 0, token // width, token % width, token < geometry[0][1] * width


@triton.jit
def mask_table(tables, group, head, query, key, key_real, geometry):
    tokens = geometry[0][1] * geometry[0][2]
    y, x, row, place, _real = tile_of_map(group % geometry[0][3], query, geometry)
    place = (group // geometry[0][3] * tokens + (y + row) * geometry[0][2] + x + place) * tokens
    return tl.load(tables + column(place) + along_rows(key))


@triton.jit
def tiles_of_image(image, group, geometry, index):
    return geometry[0][3]


@triton.jit
def queries_of_image(image, group, tile, token, geometry, index):
    tiles = geometry[0][3]
    return tile_of_image(group // tiles * tiles + tile, token - tile * TOKENS_, geometry)


@triton.jit
def mask_table_of_keys(tables, group, head, query, key, key_real, geometry):
    tokens, tiles, width = geometry[0][1] * geometry[0][2], geometry[0][3], geometry[0][2]
    y, x, row, place, _real = tile_of_map(group % tiles, key, geometry)
    key_place = (y + row) * width + x + place
    y, x, row, place, _real = tile_of_map(query // TOKENS_, query % TOKENS_, geometry)
    query_place = group // tiles * tokens + (y + row) * width + x + place
    return tl.load(tables + along_rows(query_place) * tokens + column(key_place))


def split_heads(x: Tensor) -> Tensor:
    """A map [B, H, W, C] as the loops take it."""
    return x.view(*x.shape[:3], HEADS, HEAD_DIM)


def heads_as_columns(x: Tensor) -> Tensor:
    return x.view(*x.shape[:2], x.shape[2] * HEADS, 1, HEAD_DIM)


def heads_as_images(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[2], HEADS, HEAD_DIM).permute(2, 0, 1, 3).unsqueeze(3)


def run(
    q: Tensor,
    sources: Sequence[tuple[Tensor, Tensor]],
    d_out: Tensor,
    readers: Sequence[dict[str, Any]],
    view: Callable[[Tensor], Tensor] = split_heads,
    pairs: dict[str, Any] | None = None,
    **given: Any,
) -> dict[str, Tensor]:
    """Output and gradients by the shared loops, of maps [B, H, W, C].

    `readers` are the arguments that find who reads the keys of each source, `pairs` those of a launch for the gradients
    of logits.
    """

    def by_heads(**maps: Tensor) -> dict[str, Any]:
        heads = {name: view(x) for name, x in maps.items()}
        like = view(q) if len(sources) == 1 else None
        return {**heads, **{f'{name}_strides': strides_of(x, like) for name, x in heads.items()}}

    images, height, width, heads, _ = view(q).shape
    out, dq = torch.empty_like(q), torch.empty_like(q)
    lse, delta = (q.new_empty(images, heads, height, width, dtype=torch.float32) for _ in range(2))
    arguments: dict[str, Any] = {
        **PLAIN, 'lse': lse, 'delta': delta, 'tables': None, 'index': None, 'k_fill': None, 'v_fill': None,
        'd_k_fill': None, 'd_v_fill': None, 'd_cosine': None, 'fill_strides': (0, 0), 'scale': HEAD_DIM**-0.5,
        'cosine': None, 'size': (height, width), 'images': images, 'groups': height * width // SIDE**2, 'heads': heads,
        'HEAD_DIM': HEAD_DIM, 'D': HEAD_DIM, 'M': SIDE**2, 'N': SIDE**2, 'TILES': 1, 'TABLE': no_table,
        'QUERIES': tile_of_map, 'KEY_GROUP': tile_of_map, 'TABLE_OF_KEYS': no_table,
        'PAIR': plain_pair, 'PAIR_OF_KEYS': plain_pair, 'PRECISION': target_of(q).precision,
        **given, **by_heads(d_out=d_out, out=out, dq=dq), 'q': view(q), 'q_strides': strides_of(view(q)),
    }  # fmt: skip
    arguments = {'ROWS_OF_Q': arguments['QUERIES'], 'ROWS_OF_DQ': arguments['QUERIES'], **arguments}
    each = [by_heads(k=k, v=v) for k, v in sources]
    keys = each[0] if len(each) == 1 else {name: tuple(one[name] for one in each) for name in each[0]}
    options = {'num_warps': STACK if arguments['STACKED'] else 1, 'num_stages': 1}
    for kernel in (attention_forward, attention_backward_q):
        launch(kernel, (heads, 2, 3), arguments | keys, **options)
    found = {'output': out, 'gradient of q': dq}
    for i, ((k, v), one, of_keys) in enumerate(zip(sources, each, readers, strict=pairs is None)):
        dk, dv = torch.empty_like(k), torch.empty_like(v)
        found |= {f'gradient of k{i}': dk, f'gradient of v{i}': dv}
        of_keys = {'Q_OF_KEYS': of_keys['QUERIES_OF_KEYS'], **of_keys, **by_heads(dk=dk, dv=dv)}
        launch(attention_backward_kv, (heads, 2, 3), arguments | one | of_keys, **options)
    if pairs is not None:
        shares, columns = pairs['shares'], arguments['WIDTHS'][0]
        d_pairs = found['pairs'] = q.new_empty(shares * 2, heads, SIDE**2, columns, dtype=torch.float32)
        of_pairs = {**pairs, 'd_pairs': d_pairs, 'N': columns, 'KEY_TILES': 1}
        launch(attention_backward_pairs, (heads, 2, shares), arguments | keys | of_pairs, **options)
    return found


def routed(routes: Tensor, packed: bool = False) -> dict[str, Any]:
    """Of a map of 8 x 12 to regions of 4 x 4, or packed, to regions of 2 x 4."""
    order = routes.flatten(1).sort(stable=True)
    regions, top_k = routes.shape[1:]
    bounds = torch.arange(regions + 1, device=routes.device).expand(len(routes), -1).contiguous()
    readers = {'QUERY_TILES': readers_of_region, 'QUERIES_OF_KEYS': queries_of_region}
    given = {
        'index': tuple(
            x.to(torch.int32).contiguous()
            for x in (routes, order.indices // top_k, torch.searchsorted(order.values, bounds))
        ),
        'geometry': ((3, 8, 12, regions, top_k), constant(int(packed))), 'KEYS': routed_keys,
        'WIDTHS': (SIDE**2,) * top_k, 'QUERIES': region_of_group, 'KEY_GROUP': region_of_group, 'readers': [readers],
        'PAIR': None, 'PAIR_OF_KEYS': None,
    }  # fmt: skip
    if packed:
        given |= {'view': heads_as_columns, 'PAIR': pair_of_a_head, 'PAIR_OF_KEYS': pair_of_a_head}
    return given


NEIGHBORS = {
    'TABLE_OF_KEYS': neighbor_table_of_keys, 'QUERY_TILES': reader_tiles, 'QUERIES_OF_KEYS': neighbor_readers
}  # fmt: skip


def neighborhood(bias: Tensor, stacked: bool = False, by_kind: bool = False) -> dict[str, Any]:
    """Of a map of 12 x 8; by kind, of 16 x 8, for the gradients of q and the bias alone."""
    given = {
        'tables': bias, 'geometry': ((2, 16 if by_kind else 12, 8), constant(READERS_.value**2 // SIDE**2)),
        'KEYS': neighbor_keys, 'TABLE': neighbor_table, 'WIDTHS': (REACH_.value**2,), 'readers': [NEIGHBORS],
    }  # fmt: skip
    if stacked:
        given |= {'STACKED': True, 'SUM_BY_PRODUCT': True, 'groups': 2}
    if by_kind:
        given |= {'readers': [], 'pairs': {'shares': 6, 'TURNS': tiles_of_kind, 'GROUP_OF_TURN': tile_of_kind}}
    return given


def bias_gradient_of_kinds(d_pairs: Tensor) -> Tensor:
    """[2 * kinds, heads, queries, keys], two shares of the images a kind, of a map of 16 x 8 -> that of the bias."""
    grad = torch.zeros(HEADS, (2 * KERNEL - 1) ** 2, dtype=d_pairs.dtype)
    for kind, of_kind in enumerate(d_pairs.cpu().unflatten(0, (6, 2)).sum(1)):
        offsets = []
        for tile, size in ((kind // 2 + (kind // 2 == 2), 16), (kind % 2, 8)):
            query = tile * SIDE + torch.arange(SIDE)
            first = min(max(tile * SIDE - KERNEL // 2, 0), size - REACH_.value)
            offsets.append(first + torch.arange(REACH_.value) - query.unsqueeze(1) + KERNEL - 1)
        rows, columns = offsets[0][:, None, :, None], offsets[1][None, :, None, :]
        known = (rows >= 0) & (rows < 2 * KERNEL - 1) & (columns >= 0) & (columns < 2 * KERNEL - 1)
        place = (rows * (2 * KERNEL - 1) + columns).flatten()[known.flatten()]
        grad.index_add_(1, place, of_kind.flatten(1)[:, known.flatten()])
    return grad.view(HEADS, 2 * KERNEL - 1, 2 * KERNEL - 1)


def aggregated(bias: Tensor) -> dict[str, Any]:
    """Of a map of 12 x 8 and one of 4 x 4."""
    others = {'QUERY_TILES': all_tiles, 'QUERIES_OF_KEYS': any_queries, 'KEY_GROUP': small_map, 'groups': 1}
    return {
        'tables': bias, 'geometry': ((2, 12, 8), constant(READERS_.value**2 // SIDE**2), constant(6)),
        'KEYS': keys_of_two, 'PAIR': pair_of_two, 'WIDTHS': (REACH_.value**2, SIDE**2),
        'SOURCES': (0, 1), 'readers': [NEIGHBORS, others],
    }  # fmt: skip


def halo(height_rel: Tensor, width_rel: Tensor) -> dict[str, Any]:
    """Of a map of 12 x 8."""
    tables = height_rel.new_zeros(2, SIDE**2, HEAD_DIM)
    tables[0, : len(height_rel)], tables[1, : len(width_rel)] = height_rel, width_rel
    readers = {'QUERY_TILES': reader_tiles, 'QUERIES_OF_KEYS': halo_readers, 'PAIR_OF_KEYS': halo_pair_of_keys}
    return {
        'tables': tables, 'geometry': ((2, 12, 8), constant(9)), 'KEYS': halo_keys, 'TABLE': halo_table,
        'PAIR': halo_pair, 'PREPARE': relative_logits, 'PAIR_GRADIENT': halo_pair_gradient,
        'PREPARE_GRADIENT': relative_gradient, 'WIDTHS': (32, 32), 'readers': [readers],
    }  # fmt: skip


def masked(mask: Tensor) -> dict[str, Any]:
    """Of maps of 4 x 8; the mask is 0 or -inf."""
    readers = {'TABLE_OF_KEYS': mask_table_of_keys, 'QUERY_TILES': tiles_of_image, 'QUERIES_OF_KEYS': queries_of_image}
    return {
        'tables': mask, 'geometry': ((2, 4, 8, 2),), 'view': heads_as_images, 'QUERIES': tile_of_image,
        'KEY_GROUP': tile_of_image, 'KEYS': keys_of_image, 'TABLE': mask_table, 'WIDTHS': (32,), 'readers': [readers],
    }  # fmt: skip
