"""The loops that attentions share carry other geometries than windows: keys that data choose, keys around a query.

Small kernels on `_attention.py`, as exact as the references of their ops: routed attention, whose readers of a key
region are found by an index, neighborhood attention, whose keys lie around a tile of queries, and aggregated attention,
which has keys of two maps.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from attnzoo.kernels import aot, neighborhood_attention, neighborhood_av, neighborhood_qk, routed_attention
from attnzoo.kernels._launch import launch, recording, target_of
from attnzoo.kernels._report.model import DEVICES
from attnzoo.kernels._testing import assert_as_exact_as

triton = pytest.importorskip('triton')

import triton.language as tl  # noqa: E402  (Triton may be missing)

from attnzoo.kernels._attention import (  # noqa: E402
    LOG2_E,
    attention_backward_kv,
    attention_backward_q,
    attention_forward,
)
from attnzoo.kernels._triton import constant, strides_of  # noqa: E402

SIDE = 4  # of a region, or of a tile of queries: 16 tokens
KERNEL = 5  # of a neighborhood: a tile of queries has 8 x 8 keys
HEADS, HEAD_DIM = 2, 16
SIDE_, KERNEL_ = tl.constexpr(SIDE), tl.constexpr(KERNEL)
REACH_ = tl.constexpr(SIDE + KERNEL - 1)  # keys of a tile of queries, along an axis
READERS_ = tl.constexpr(SIDE + 2 * (KERNEL - 1))  # queries that may read a tile of keys, along an axis

# A geometry is (tiles along the width, height, width), then the numbers that are known when a kernel is compiled.


@triton.jit
def tile_of_map(group, token, geometry):
    tiles_w = geometry[0][0]
    return group // tiles_w * SIDE_, group % tiles_w * SIDE_, token // SIDE_, token % SIDE_, token < SIDE_ * SIDE_


@triton.jit
def plain_pair(scores, factor, table, q, image, group, head, tile, query, key, geometry, tables):
    return scores * (factor * LOG2_E) + table


# Routed attention: index holds routes [B, R, K], the regions that read a region one behind the other, [B, R * K], and
# where those of each begin, [B, R + 1].


@triton.jit
def routed_keys(image, group, tile, token, geometry, index):
    regions, top_k = geometry[0][3], geometry[0][4]
    region = tl.load(index[0] + (image * regions + group) * top_k + tile)
    return tile_of_map(region, token - tile * (SIDE_ * SIDE_), geometry)


@triton.jit
def no_table(tables, group, head, query, key, key_real, geometry):
    return 0.0


@triton.jit
def readers_of_region(image, group, geometry, index):
    start = index[2] + image * (geometry[0][3] + 1) + group
    return tl.load(start + 1) - tl.load(start)


@triton.jit
def queries_of_region(image, group, tile, token, geometry, index):
    regions, top_k = geometry[0][3], geometry[0][4]
    start = tl.load(index[2] + image * (regions + 1) + group)
    region = tl.load(index[1] + image * regions * top_k + start + tile)
    return tile_of_map(region, token - tile * (SIDE_ * SIDE_), geometry)


# Neighborhood attention: a table of biases [heads, 2 * KERNEL - 1, 2 * KERNEL - 1].


@triton.jit
def first_key(group, geometry):
    """Of the keys of a tile of queries."""
    tiles_w, height, width = geometry[0][0], geometry[0][1], geometry[0][2]
    y, x = group // tiles_w * SIDE_ - KERNEL_ // 2, group % tiles_w * SIDE_ - KERNEL_ // 2
    return tl.minimum(tl.maximum(y, 0), height - REACH_), tl.minimum(tl.maximum(x, 0), width - REACH_)


@triton.jit
def neighbor_keys(image, group, tile, token, geometry, index):
    y, x = first_key(group, geometry)
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
    first_y, first_x = first_key(group, geometry)
    key_y, key_x = first_y + key // REACH_, first_x + key % REACH_
    return bias_of(
        tables,
        head,
        (tile_y + y)[:, None],
        (tile_x + x)[:, None],
        key_y[None, :],
        key_x[None, :],
        real[:, None],
        geometry,
    )


@triton.jit
def reader_tiles(image, group, geometry, index):
    return geometry[1]


@triton.jit
def neighbor_readers(image, group, tile, token, geometry, index):
    tiles_w, height, width = geometry[0][0], geometry[0][1], geometry[0][2]
    y = group // tiles_w * SIDE_ - (KERNEL_ - 1) + token // READERS_
    x = group % tiles_w * SIDE_ - (KERNEL_ - 1) + token % READERS_
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return 0, 0, y, x, inside & (token < READERS_ * READERS_)


@triton.jit
def neighbor_table_of_keys(tables, group, head, query, key, key_real, geometry):
    tile_y, tile_x, y, x, _real = tile_of_map(group, key, geometry)
    _y, _x, query_y, query_x, real = neighbor_readers(0, group, 0, query, geometry, None)
    return bias_of(
        tables,
        head,
        query_y[None, :],
        query_x[None, :],
        (tile_y + y)[:, None],
        (tile_x + x)[:, None],
        real[None, :],
        geometry,
    )


# Aggregated attention: the keys around a query and those of a small map of 4 x 4, under one softmax.


@triton.jit
def keys_of_two(image, group, tile, token, geometry, index):
    if tile == 0:
        return neighbor_keys(image, group, tile, token, geometry, index)
    else:
        return tile_of_map(0, token - REACH_ * REACH_, geometry)


@triton.jit
def pair_of_two(scores, factor, table, q, image, group, head, tile, query, key, geometry, tables):
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
    return tile_of_map(tile, token - tile * (SIDE_ * SIDE_), geometry)


def run(
    q: Tensor, sources: Sequence[tuple[Tensor, Tensor]], d_out: Tensor, readers: Sequence[dict[str, Any]], **given: Any
) -> dict[str, Tensor]:
    """Output and gradients by the shared loops, of maps [B, H, W, C]; `readers` are the arguments that find them."""
    batch, height, width, _channels = q.shape
    out, dq = torch.empty_like(q), torch.empty_like(q)
    lse, delta = (q.new_empty(batch, HEADS, height, width, dtype=torch.float32) for _ in range(2))
    arguments: dict[str, Any] = {
        'lse': lse, 'delta': delta, 'tables': None, 'index': None, 'k_fill': None, 'v_fill': None,
        'd_k_fill': None, 'd_v_fill': None, 'd_cosine': None, 'fill_strides': (0, 0), 'scale': HEAD_DIM**-0.5,
        'cosine': None, 'size': (height, width), 'images': batch, 'groups': height * width // SIDE**2, 'heads': HEADS,
        'HEAD_DIM': HEAD_DIM, 'D': HEAD_DIM, 'M': SIDE**2, 'N': SIDE**2, 'TILES': 1, 'STAGES': 1, 'SOURCES': None,
        'QUERIES': tile_of_map, 'ROWS_OF_Q': tile_of_map, 'ROWS_OF_DQ': tile_of_map, 'KEY_GROUP': tile_of_map,
        'PAIR': plain_pair, 'PAIR_OF_KEYS': plain_pair, 'PRECISION': target_of(q).precision,
        **given, **by_heads(q=q, d_out=d_out, out=out, dq=dq),
    }  # fmt: skip
    each = [by_heads(k=k, v=v) for k, v in sources]
    keys = each[0] if len(each) == 1 else {name: tuple(one[name] for one in each) for name in each[0]}
    for kernel in (attention_forward, attention_backward_q):
        launch(kernel, (HEADS, 2, 3), arguments | keys, num_warps=1, num_stages=1)
    found = {'output': out, 'gradient of q': dq}
    for i, ((k, v), one, of_keys) in enumerate(zip(sources, each, readers, strict=True)):
        dk, dv = torch.empty_like(k), torch.empty_like(v)
        found |= {f'gradient of k{i}': dk, f'gradient of v{i}': dv}
        of_keys = {'Q_OF_KEYS': of_keys['QUERIES_OF_KEYS'], **of_keys, **by_heads(dk=dk, dv=dv)}
        launch(attention_backward_kv, (HEADS, 2, 3), arguments | one | of_keys, num_warps=1, num_stages=1)
    return found


def by_heads(**maps: Tensor) -> dict[str, Any]:
    heads = {name: x.view(*x.shape[:3], HEADS, HEAD_DIM) for name, x in maps.items()}
    return {**heads, **{f'{name}_strides': strides_of(x) for name, x in heads.items()}}


def expected(attention: Any, q: Tensor, sources: Sequence[tuple[Tensor, Tensor]], d_out: Tensor) -> dict[str, Tensor]:
    leaves = [x.clone().requires_grad_() for x in (q, *(x for pair in sources for x in pair))]
    out = attention(*leaves)
    names = ['q', *(f'{name}{i}' for i in range(len(sources)) for name in 'kv')]
    grads = torch.autograd.grad(out, leaves, d_out)
    return {'output': out.detach()} | {f'gradient of {name}': x for name, x in zip(names, grads, strict=True)}


def maps(height: int, width: int, device: torch.device | str, small: bool = False) -> Any:
    """q, the sources of keys and values, and the output's gradient."""
    generator = torch.Generator().manual_seed(0)

    def random(height: int, width: int) -> Tensor:
        return torch.randn(3, height, width, HEADS * HEAD_DIM, generator=generator).to(device)

    q, k, v, d_out = (random(height, width) for _ in range(4))
    return q, [(k, v), (random(SIDE, SIDE), random(SIDE, SIDE))] if small else [(k, v)], d_out


def converted(q: Tensor, sources: Sequence[tuple[Tensor, Tensor]], d_out: Tensor, *to: Any) -> Any:
    return q.to(*to), [(k.to(*to), v.to(*to)) for k, v in sources], d_out.to(*to)


def random_bias() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(HEADS, 2 * KERNEL - 1, 2 * KERNEL - 1, generator=generator)


def random_routes(device: torch.device | str) -> Tensor:
    """Of 2 x 3 regions to two of them each: all are routed to region 0, and none to region 5."""
    generator = torch.Generator().manual_seed(1)
    others = torch.randint(1, 5, (3, 6, 1), generator=generator)
    return torch.cat([torch.zeros_like(others), others], 2).to(device)


def routed(routes: Tensor) -> dict[str, Any]:
    order = routes.flatten(1).sort(stable=True)
    regions, top_k = routes.shape[1:]
    starts = torch.searchsorted(
        order.values, torch.arange(regions + 1, device=routes.device).expand(3, -1).contiguous()
    )
    readers = {'TABLE_OF_KEYS': no_table, 'QUERY_TILES': readers_of_region, 'QUERIES_OF_KEYS': queries_of_region}
    return {
        'index': tuple(x.to(torch.int32).contiguous() for x in (routes, order.indices // top_k, starts)),
        'geometry': ((3, 8, 12, regions, top_k),), 'KEYS': routed_keys, 'TABLE': no_table,
        'WIDTHS': (SIDE**2,) * top_k, 'readers': [readers],
    }  # fmt: skip


NEIGHBORS = {
    'TABLE_OF_KEYS': neighbor_table_of_keys, 'QUERY_TILES': reader_tiles, 'QUERIES_OF_KEYS': neighbor_readers
}  # fmt: skip


def neighborhood(bias: Tensor) -> dict[str, Any]:
    return {
        'tables': bias, 'geometry': ((2, 12, 8), constant(READERS_.value**2 // SIDE**2)), 'KEYS': neighbor_keys,
        'TABLE': neighbor_table, 'WIDTHS': (REACH_.value**2,), 'readers': [NEIGHBORS],
    }  # fmt: skip


def aggregated(bias: Tensor) -> dict[str, Any]:
    others = {'TABLE_OF_KEYS': no_table, 'QUERY_TILES': all_tiles, 'QUERIES_OF_KEYS': any_queries}
    others |= {'KEY_GROUP': small_map, 'groups': 1}
    return {
        'tables': bias, 'geometry': ((2, 12, 8), constant(READERS_.value**2 // SIDE**2), constant(6)),
        'KEYS': keys_of_two, 'TABLE': no_table, 'PAIR': pair_of_two, 'WIDTHS': (REACH_.value**2, SIDE**2),
        'SOURCES': (0, 1), 'readers': [NEIGHBORS, others],
    }  # fmt: skip


@pytest.mark.kernel
@pytest.mark.usefixtures('poisoned')
def test_keys_that_the_data_choose(kernel_device: torch.device) -> None:
    given, routes = maps(8, 12, kernel_device), random_routes(kernel_device)
    found = run(*given, **routed(routes))

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return routed_attention(q, k, v, routes, HEADS, (2, 3))

    exact = expected(attention, *converted(*given, torch.float64))
    assert_as_exact_as(found, expected(attention, *given), exact, torch.float32)
    assert found['gradient of k0'][:, :4, :4].any() and not found['gradient of k0'][:, 4:, 8:].any()


@pytest.mark.kernel
@pytest.mark.usefixtures('poisoned')
def test_keys_around_a_query(kernel_device: torch.device) -> None:
    given = maps(12, 8, kernel_device)
    bias = random_bias().to(kernel_device)
    found = run(*given, **neighborhood(bias))

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return neighborhood_attention(q, k, v, HEADS, (KERNEL, KERNEL), bias=bias.to(q.dtype))

    exact = expected(attention, *converted(*given, torch.float64))
    assert_as_exact_as(found, expected(attention, *given), exact, torch.float32)


@pytest.mark.kernel
@pytest.mark.usefixtures('poisoned')
def test_keys_of_two_maps_under_one_softmax(kernel_device: torch.device) -> None:
    given = maps(12, 8, kernel_device, small=True)
    bias = random_bias().to(kernel_device)
    found = run(*given, **aggregated(bias))

    def attention(q: Tensor, k: Tensor, v: Tensor, small_k: Tensor, small_v: Tensor) -> Tensor:
        heads = (x.unflatten(3, (HEADS, HEAD_DIM)).flatten(1, 2).transpose(1, 2) for x in (q, small_k, small_v))
        q_heads, small_k, small_v = heads
        near = neighborhood_qk(q, k, HEADS, (KERNEL, KERNEL), bias=bias.to(q.dtype))
        far = (q_heads * HEAD_DIM**-0.5 @ small_k.transpose(2, 3)).view(*near.shape[:4], -1)
        weights = torch.cat([near, far], 4).softmax(4)
        near, far = weights.split([KERNEL**2, SIDE**2], 4)
        mean = (far.flatten(2, 3) @ small_v).transpose(1, 2).reshape(q.shape)
        return neighborhood_av(near, v, (KERNEL, KERNEL)) + mean

    exact = expected(attention, *converted(*given, torch.float64))
    assert_as_exact_as(found, expected(attention, *given), exact, torch.float32)


@pytest.mark.skipif(triton.knobs.runtime.interpret, reason="the interpreter's functions cannot be compiled")
@pytest.mark.parametrize('op', ['routed', 'neighborhood', 'aggregated'])
def test_all_compile(op: str) -> None:
    if op == 'routed':
        given, geometry = maps(8, 12, 'cpu'), routed(random_routes('cpu'))
        geometry['index'] = tuple(x.to('meta') for x in geometry['index'])
    else:
        given = maps(12, 8, 'cpu', small=op == 'aggregated')
        geometry = (aggregated if op == 'aggregated' else neighborhood)(random_bias().to('meta'))
    device = DEVICES['sm_90']
    with recording(device.target) as launches:
        run(*converted(*given, 'meta', torch.bfloat16), **geometry)
    assert len(launches) == (4 if op == 'aggregated' else 3)
    head = {'op': op, 'direction': '', 'dtype': 'bf16', 'shape': '', 'target': 'sm_90'}
    for one in launches:
        row = aot._compile(aot._job(one, device, head))
        assert row.passes and row.tensor > 0, row
