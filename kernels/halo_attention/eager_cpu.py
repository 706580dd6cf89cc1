"""The op's arithmetic by blocks, for eager mode on a CPU: both passes written out by hand.

A product takes the relative logits along: they are further channels of the queries, beside which the keys have a one at
their row and at their column of the window. Scores are computed again in the backward pass, a part at a time.

Legend: B images, N heads of d channels (values: e), window of Wh x Ww keys; G blocks of all images and heads of a part,
T queries of a block, S keys of its window.
"""

from typing import Any

import torch
from torch import Tensor

from attnzoo.kernels._tiles import Axis, Part, Tiling

EXCLUDED = -1e30  # finite: it is multiplied by the zeros of other rows and columns


class Blocks:
    """How the maps of a call are cut, and what goes into the products."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor | None,
        height_rel: Tensor,
        width_rel: Tensor,
        num_heads: int,
        block: tuple[int, int],
        halo: tuple[int, int],
        stride: int,
        scale: float,
        position_scale: float,
        mask_padding: bool,
    ):
        self.q, self.k, self.v, self.scale, self.mask_padding = q, k, v, scale, mask_padding
        self.rows, self.columns = (
            Axis(size, side, -(-size // side), side + 2 * around, around, stride=stride)
            for size, side, around in zip(k.shape[1:3], block, halo, strict=True)
        )
        self.tiling = Tiling(self.rows, self.columns, num_heads, q.dtype)
        self.head_dim = q.shape[3] // num_heads
        self.values_dim = k.shape[3] // num_heads - self.head_dim if v is None else v.shape[3] // num_heads
        self.tables = torch.cat([height_rel, width_rel]).to(self.tiling.dtype) * position_scale

        place = torch.arange(self.rows.window * self.columns.window).unsqueeze(1)
        in_row = place // self.columns.window == torch.arange(self.rows.window)
        in_column = place % self.columns.window == torch.arange(self.columns.window)
        self._places = torch.cat([in_row, in_column], 1)  # [S, Wh + Ww]
        self.width = self.head_dim + self._places.shape[1] + self.values_dim
        self._keys = torch.empty(0)

    def keys_and_values(self, part: Part) -> tuple[Tensor, Tensor]:
        """Keys with their places [G, S, d + Wh + Ww], in memory that the next part uses again, and values [G, S, e]."""
        if self.v is None:
            packed = self.tiling.windows(self.k, part)
            keys, values = packed.split([self.head_dim, self.values_dim], 2)
        else:
            keys, values = self.tiling.windows(self.k, part), self.tiling.windows(self.v, part)
        if len(self._keys) < len(keys):
            self._keys = keys.new_empty(*keys.shape[:2], self.head_dim + self._places.shape[1])
            self._keys[..., self.head_dim :] = self._places
        with_places = self._keys[: len(keys)]
        with_places[..., : self.head_dim] = keys
        return with_places, values

    def queries(self, given: Tensor, part: Part) -> Tensor:
        """Queries [G, T, d] -> scaled, with their relative logits, [G, T, d + Wh + Ww]."""
        queries = given.new_empty(*given.shape[:2], self.head_dim + self._places.shape[1])
        torch.mul(given, self.scale, out=queries[..., : self.head_dim])
        of_distance = (given.flatten(0, 1) @ self.tables.mT).view(*given.shape[:2], -1)
        for logits, source in self.logits(queries, of_distance):
            logits.copy_(source)
        if self.mask_padding:
            self._exclude(queries, part)
        return queries

    def logits(self, queries: Tensor, of_distance: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For both axes, views of the logits beside queries and of those by distance, [G, rows, columns, window]."""
        rows, columns = self.rows, self.columns
        size = len(queries), rows.tile // rows.stride, columns.tile // columns.stride
        _, by_row, by_column = queries.unflatten(1, size[1:]).split([self.head_dim, rows.window, columns.window], 3)
        of_block, of_query, _ = of_distance.stride()
        of_row = size[2] * of_query
        # The next query along the axis has the same distance one key later.
        to_rows = of_distance.as_strided((*size, rows.window), (of_block, of_row - 1, of_query, 1), rows.window - 1)
        to_columns = of_distance.as_strided(
            (*size, columns.window), (of_block, of_row, of_query - 1, 1), 2 * rows.window - 2 + columns.window
        )
        return [(by_row, to_rows), (by_column, to_columns)]

    def _exclude(self, queries: Tensor, part: Part) -> None:
        """Logits of the rows and columns of windows that are not on the map: such that their keys have no weight."""
        rows, columns = self.rows, self.columns
        of_tiles = queries.view(-1, part.rows.stop - part.rows.start, columns.count, *queries.shape[1:])
        _, by_row, by_column = of_tiles.split([self.head_dim, rows.window, columns.window], 4)
        by_row.masked_fill_(_beyond(rows, part.rows)[:, None, None], EXCLUDED)
        by_column.masked_fill_(_beyond(columns, slice(0, columns.count))[:, None], EXCLUDED)


def _beyond(axis: Axis, tiles: slice) -> Tensor:
    """Which places of the windows of some tiles are not on the map, [tiles, window]."""
    start = torch.arange(tiles.start, tiles.stop).unsqueeze(1) * axis.tile - axis.before
    place = start + torch.arange(axis.window)
    return (place < 0) | (place >= axis.size)


def forward(q: Tensor, *arguments: Any) -> tuple[Tensor, tuple[()]]:
    blocks = Blocks(q, *arguments)
    tiling = blocks.tiling
    out = tiling.new_queries(len(q), blocks.values_dim * tiling.num_heads)
    for _, parts in tiling.parts(len(q), blocks.width):
        for part in parts:
            keys, values = blocks.keys_and_values(part)
            weights = _attend(blocks.queries(tiling.queries(q, part), part), keys)
            tiling.put_queries(out, part, torch.bmm(weights, values))
    return tiling.crop_queries(out), ()


def backward(
    grad: Tensor, needs: list[bool], kept: list[Tensor], q: Tensor, k: Tensor, v: Tensor | None, *arguments: Any
) -> tuple[Tensor | None, ...]:
    blocks = Blocks(q, k, v, *arguments)
    tiling, d = blocks.tiling, blocks.head_dim
    height_rel, width_rel, _, _, _, _, _, position_scale, _ = arguments
    d_q, d_k = tiling.new_queries(len(q), q.shape[3]), tiling.new_keys(len(q), k.shape[3])
    d_v = None if v is None else tiling.new_keys(len(q), v.shape[3])
    d_tables = torch.zeros_like(blocks.tables, dtype=torch.promote_types(height_rel.dtype, torch.float32))
    for _, parts in tiling.parts(len(q), blocks.width):
        for part in parts:
            given, d_out = tiling.queries(q, part), tiling.queries(grad, part)
            queries, (keys, values) = blocks.queries(given, part), blocks.keys_and_values(part)
            weights = _attend(queries, keys)
            d_values = torch.bmm(weights.mT, d_out)
            d_weights = torch.bmm(d_out, values.mT)
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_keys = torch.bmm(d_scores.mT, queries[..., :d])
            if d_v is None:
                tiling.add_windows(d_k, part, torch.cat([d_keys, d_values], 2))
            else:
                tiling.add_windows(d_k, part, d_keys)
                tiling.add_windows(d_v, part, d_values)
            d_queries = torch.bmm(d_scores, keys)
            of_distance = given.new_zeros(*given.shape[:2], len(blocks.tables))
            for d_logits, target in blocks.logits(d_queries, of_distance):
                target.copy_(d_logits)
            of_distance = of_distance.flatten(0, 1)
            d_tables += of_distance.mT @ given.flatten(0, 1)
            d_given = torch.add((of_distance @ blocks.tables).view(given.shape), d_queries[..., :d], alpha=blocks.scale)
            tiling.put_queries(d_q, part, d_given)
    d_tables = (d_tables * position_scale).to(height_rel.dtype)
    d_maps = tiling.crop_queries(d_q), tiling.crop_keys(d_k), None if d_v is None else tiling.crop_keys(d_v)
    return *d_maps, *d_tables.split([len(height_rel), len(width_rel)]), *(None for _ in arguments[2:])


def _attend(queries: Tensor, keys: Tensor) -> Tensor:
    scores = torch.bmm(queries, keys.mT)
    return torch.softmax(scores, -1, out=scores)
