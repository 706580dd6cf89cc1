"""Maps cut into tiles of queries, with a window of keys around each: attention to what is near becomes products.

For hand-written passes in eager mode on a CPU (`_cpu.by_hand`), a part of a map at a time.

Legend: B images, H x W map, heads * d = C channels, G tiles of all images, heads and sub-grids of a part, T queries of
a tile, S keys of its window.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

PART_BYTES = 6 << 20  # of the windows of a part and their scores


class Axis(NamedTuple):
    """How an axis of a map is cut.

    With a dilation, positions of equal residue make a map of their own (a sub-grid). All are cut alike, and numbers of
    positions are those in a sub-grid.
    """

    size: int  # positions of the map itself
    tile: int  # positions of a tile
    count: int  # type: ignore[assignment]  # tiles
    window: int  # keys around a tile
    before: int  # keys of a window in front of its tile
    dilation: int = 1
    stride: int = 1  # positions of the map for each query


class Part(NamedTuple):
    """What is worked on at a time: some images, and some rows of tiles."""

    images: slice
    rows: slice


class Tiling:
    """A map's tiles and windows, and the way back. Beyond the map, queries and keys are zeros."""

    def __init__(self, rows: Axis, columns: Axis, num_heads: int, dtype: torch.dtype):
        self.rows, self.columns, self.num_heads, self.given_dtype = rows, columns, num_heads, dtype
        self.dtype = torch.float32 if dtype == torch.float16 else dtype  # float16 has no fast products on a CPU

    def parts(self, batch: int, width: int) -> Iterator[tuple[slice, list[Part]]]:
        """Some rows of tiles at a time, and for them all the images, some at a time.

        `width` is the number of channels that keys and values of a head have together.
        """
        rows, columns = self.rows, self.columns
        queries = rows.tile // rows.stride * (columns.tile // columns.stride)
        row = self.num_heads * rows.dilation * columns.dilation * columns.count
        of_row = row * rows.window * columns.window * (queries + width) * self.dtype.itemsize
        at_once = max(1, PART_BYTES // of_row)
        images = max(1, at_once // rows.count)
        for start in range(0, rows.count, at_once):
            some = slice(start, min(start + at_once, rows.count))
            yield some, [Part(slice(i, min(i + images, batch)), some) for i in range(0, batch, images)]

    def queries(self, x: Tensor, part: Part) -> Tensor:
        """Queries [B, H, W, C] -> [G, T, d]."""
        tiles = self._tiles(self._region(x[part.images], *self._lines_of_queries(part)))
        return tiles.reshape(-1, tiles.shape[6] * tiles.shape[7], tiles.shape[8])

    def windows(self, x: Tensor, part: Part) -> Tensor:
        """Keys or values [B, H, W, C] -> [G, S, d]."""
        windows = self._windows(self._by_residue(self._region(x[part.images], *self._lines_of_keys(part))))
        return windows.reshape(-1, windows.shape[6] * windows.shape[7], windows.shape[8])

    def new_queries(self, batch: int, channels: int) -> Tensor:
        """A map of whole tiles for `put_queries`."""
        height, width = (axis.count * axis.tile // axis.stride * axis.dilation for axis in (self.rows, self.columns))
        return torch.empty(batch, height, width, channels, dtype=self.dtype)

    def new_keys(self, batch: int, channels: int) -> Tensor:
        """Zeros for `add_windows`, as far as all windows reach: sub-grids of each head, [B, heads, .., .., H, W, d]."""
        rows, columns = self.rows, self.columns
        size = _reach(rows, rows.count), _reach(columns, columns.count), channels // self.num_heads
        return torch.zeros(batch, self.num_heads, rows.dilation, columns.dilation, *size, dtype=self.dtype)

    def put_queries(self, out: Tensor, part: Part, tiles: Tensor) -> None:
        """The way back from `queries`."""
        (top, bottom), _ = self._lines_of_queries(part)
        target = self._tiles(out[part.images, top:bottom])
        target.copy_(tiles.view(target.shape))

    def add_windows(self, out: Tensor, part: Part, windows: Tensor) -> None:
        """The way back from `windows`: what windows share is summed."""
        rows, columns = self.rows, self.columns
        start = part.rows.start * rows.tile
        sums = self._windows(out[part.images, :, :, :, start : start + _reach(rows, part.rows.stop - part.rows.start)])
        windows = windows.view(sums.shape)
        # Windows some tiles apart have nothing in common, and are added in one go.
        apart_h, apart_w = -(-rows.window // rows.tile), -(-columns.window // columns.tile)
        for y in range(min(apart_h, sums.shape[4])):
            for x in range(min(apart_w, sums.shape[5])):
                sums[..., y::apart_h, x::apart_w, :, :, :] += windows[..., y::apart_h, x::apart_w, :, :, :]

    def crop_queries(self, out: Tensor) -> Tensor:
        """What `put_queries` filled, in the size and type of the queries."""
        height, width = (-(-axis.size // axis.stride) for axis in (self.rows, self.columns))
        return out[:, :height, :width].to(self.given_dtype).contiguous()

    def crop_keys(self, out: Tensor) -> Tensor:
        """What `add_windows` summed, as a map in the size and type of the keys."""
        rows, columns = self.rows, self.columns
        height, width = (-(-axis.size // axis.dilation) for axis in (rows, columns))
        out = out[:, :, :, :, rows.before : rows.before + height, columns.before : columns.before + width]
        out = out.to(self.given_dtype).permute(0, 4, 2, 5, 3, 1, 6).flatten(5).flatten(3, 4).flatten(1, 2)
        return out[:, : rows.size, : columns.size].contiguous()

    def _lines_of_queries(self, part: Part) -> tuple[tuple[int, int], tuple[int, int]]:
        """First and last row, first and last column of a part's queries."""
        by_row, by_column = (axis.tile // axis.stride * axis.dilation for axis in (self.rows, self.columns))
        return (part.rows.start * by_row, part.rows.stop * by_row), (0, self.columns.count * by_column)

    def _lines_of_keys(self, part: Part) -> tuple[tuple[int, int], tuple[int, int]]:
        """First and last row, first and last column of a part's keys, which may lie beyond the map."""
        rows, columns = self.rows, self.columns
        top, left = part.rows.start * rows.tile - rows.before, -columns.before
        bottom, right = top + _reach(rows, part.rows.stop - part.rows.start), left + _reach(columns, columns.count)
        return (top * rows.dilation, bottom * rows.dilation), (left * columns.dilation, right * columns.dilation)

    def _region(self, x: Tensor, lines: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        """Rows and columns of a map, with zeros where they lie beyond it."""
        (top, bottom), (left, right), (height, width) = lines, columns, x.shape[1:3]
        inside = x[:, max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)].to(self.dtype)
        beyond = (max(-left, 0), max(right - width, 0), max(-top, 0), max(bottom - height, 0))
        return F.pad(inside, (0, 0, *beyond)) if any(beyond) else inside

    def _tiles(self, x: Tensor) -> Tensor:
        """View of a region: [B, heads, residues, residues, tiles, tiles, tile, tile, d], a pair for the two axes."""
        rows, columns = self.rows, self.columns
        x = x.unflatten(3, (self.num_heads, -1))
        x = x.unflatten(2, (-1, columns.tile // columns.stride, columns.dilation))
        x = x.unflatten(1, (-1, rows.tile // rows.stride, rows.dilation))
        return x.permute(0, 7, 3, 6, 1, 4, 2, 5, 8)

    def _by_residue(self, x: Tensor) -> Tensor:
        """View of a region: [B, heads, residues, residues, H, W, d]."""
        x = x.unflatten(3, (self.num_heads, -1))
        x = x.unflatten(2, (-1, self.columns.dilation)).unflatten(1, (-1, self.rows.dilation))
        return x.permute(0, 5, 2, 4, 1, 3, 6)

    def _windows(self, x: Tensor) -> Tensor:
        """View of sub-grids: [B, heads, residues, residues, tiles, tiles, window, window, d]."""
        x = x.unfold(4, self.rows.window, self.rows.tile).unfold(5, self.columns.window, self.columns.tile)
        return x.permute(0, 1, 2, 3, 4, 5, 7, 8, 6)


def _reach(axis: Axis, tiles: int) -> int:
    """Positions from the first to the last that the windows of adjacent tiles hold."""
    return (tiles - 1) * axis.tile + axis.window
