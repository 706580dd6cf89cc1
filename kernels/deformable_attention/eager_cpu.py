"""Deformable attention written out for eager mode on a CPU: both passes by parts, with no map of what is sampled.

A query's output is a weighted sum of rows of the values: four pixels around each of its points. That is an embedding
bag, which reads the rows where they lie. The gradient of the values is the same with rows and queries changed places:
for each row the bag of queries that took it, found by sorting. Equal sums come in equal order, whatever the threads.

Pixels around a point of a map are the two columns and the two rows nearest to it that the map has. A pixel's share is
the product of what remains of 1 after the distances along both axes: zero where the point lies beyond the map and far
from its edge.

Legend: N heads of d channels, L levels, P points of a query in a level, n points of a part, axes x and y.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

PART_POINTS = 1 << 15  # worked on at a time: what is known of them fits a cache
_NO_SECOND = 4.0  # where the second of two pixels lies if an axis has only one: nothing has a share of it


class _Surroundings:
    """The four pixels around the points of a part, for parts of up to so many queries."""

    def __init__(self, shapes: list[tuple[int, int]], points: int, queries: int, heads: int, like: Tensor):
        def pattern(by_level: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
            """[axes, L] -> [axes, n]"""
            table = torch.tensor(by_level, dtype=dtype)[:, None, None, :, None]
            return table.expand(-1, queries, heads, -1, points).flatten(1)

        by_axis = [[width for _, width in shapes], [height for height, _ in shapes]]
        starts = [0]
        for height, width in shapes[:-1]:
            starts.append(starts[-1] + height * width)
        self.size = pattern(by_axis, like.dtype)
        self.last_first = pattern([[max(n - 2, 0) for n in sizes] for sizes in by_axis], torch.int32)
        self.second = pattern([[1.0 if n > 1 else _NO_SECOND for n in sizes] for sizes in by_axis], like.dtype)
        self.to_second = pattern(
            [
                [heads * (width > 1) for _, width in shapes],
                [heads * width * (height > 1) for height, width in shapes],
            ],
            torch.int32,
        )
        self.pitch = pattern([[heads for _ in shapes], [heads * width for _, width in shapes]], torch.int32)
        self.start = pattern([[heads * start for start in starts]], torch.int32)[0]
        if heads > 1:
            head = torch.arange(heads, dtype=torch.int32)[:, None].expand(queries, -1, len(shapes) * points)
            self.start = self.start + head.flatten()

    def __call__(self, locations: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the four pixels around points [..., 2], and how far the points lie from them.

        Returns:
            Rows of the values of these heads, [4, n]: two of the upper, then two of the lower line. Distances to the
            first and the second pixel of either axis, [2, axes, n].
        """
        locations = locations.reshape(-1, 2).T
        n = locations.shape[1]
        at = torch.mul(locations, self.size[:, :n]).sub_(0.5)
        first = at.to(torch.int32).clamp_(min=0)
        torch.minimum(first, self.last_first[:, :n], out=first)
        distances = at.new_empty(2, 2, n)
        torch.sub(at, first, out=distances[0])
        torch.sub(distances[0], self.second[:, :n], out=distances[1])

        rows = torch.empty(4, n, dtype=torch.int32)
        right, down = self.to_second[:, :n]
        torch.sum(first.mul_(self.pitch[:, :n]), 0, out=rows[0])
        rows[0] += self.start[:n]
        torch.add(rows[0], right, out=rows[1])
        torch.add(rows[:2], down, out=rows[2:])
        return rows, distances


def _nearness(distances: Tensor) -> Tensor:
    return distances.abs().neg_().add_(1).clamp_(min=0)


def _slope(distances: Tensor) -> Tensor:
    """The derivative of nearness. Where it has two, at a pixel's centre, it is that towards the next one."""
    cell = distances.floor()
    return (cell == -1).to(distances.dtype).sub_((cell == 0).to(distances.dtype))


def _shares(near: Tensor, weights: Tensor) -> Tensor:
    """Nearness [2, axes, n] and weights [n] -> [4, n]."""
    lines = weights * near[:, 1]
    return (lines[:, None] * near[:, 0]).flatten(0, 1)


def forward(
    values: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> tuple[Tensor, tuple[()]]:
    batch, queries, heads, levels, points, _ = locations.shape
    values, locations, weights = _prepare(values, locations, weights)
    step = max(1, PART_POINTS // (heads * levels * points))
    surroundings = _Surroundings(shapes, points, min(step, queries), heads, locations)
    out = values.new_empty(batch, queries, heads * values.shape[3])
    bags = torch.arange(min(step, queries) * heads, dtype=torch.int32) * (levels * points)
    for image in range(batch):
        table = values[image].flatten(0, 1)
        for start in range(0, queries, step):
            part = slice(start, min(start + step, queries))
            rows, distances = surroundings(locations[image, part])
            shares = _shares(_nearness(distances), weights[image, part].flatten())
            some = bags[: (part.stop - start) * heads]
            found = _sum_bags(table, rows[0], some, shares[0])
            for pixel in range(1, 4):
                found += _sum_bags(table, rows[pixel], some, shares[pixel])
            out[image, part] = found.view(-1, out.shape[2])
    return out, ()


def _prepare(values: Tensor, locations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(locations.dtype, weights.dtype), torch.float32)
    return values.contiguous(), locations.to(dtype), weights.to(dtype)


def _sum_bags(table: Tensor, rows: Tensor, bags: Tensor, shares: Tensor) -> Tensor:
    return torch.embedding_bag(table, rows, bags, mode=0, per_sample_weights=shares.to(table.dtype))[0]


def backward(
    grad: Tensor,
    needs: list[bool],
    kept: list[Tensor],
    values: Tensor,
    shapes: list[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
) -> tuple[Tensor | None, ...]:
    batch, queries, heads, levels, points, _ = locations.shape
    given = values, locations, weights
    values, locations, weights = _prepare(values, locations, weights)
    grad = grad.unflatten(2, (heads, -1))
    d_values, d_locations, d_weights = (
        torch.empty_like(x) if need else None for x, need in zip(given, (needs[0], *needs[2:]), strict=True)
    )

    # As few heads at a time as make a number of points that is sorted fast. No fewer pixels than rows, so that summing
    # parts costs little beside them.
    enough = PART_POINTS // 4
    together = next(
        n for n in range(1, heads + 1) if (heads % n == 0 and n * queries * levels * points >= enough) or n == heads
    )
    step = min(queries, -(-max(2 * PART_POINTS, values.shape[1]) // (levels * points)))
    surroundings = _Surroundings(shapes, points, step, together, locations)
    query_of = torch.arange(step * together, dtype=torch.int32).repeat_interleave(levels * points).repeat(4, 1)
    sums = torch.float64 if values.dtype == torch.float64 else torch.float32
    for image in range(batch):
        for head in range(0, heads, together):
            some = slice(head, head + together)
            table = values[image, :, some].reshape(-1, values.shape[3]).to(sums)
            total: Tensor | None = None
            for start in range(0, queries, step):
                part = slice(start, min(start + step, queries))
                rows, distances = surroundings(locations[image, part, some])
                near, weight = _nearness(distances), weights[image, part, some].flatten()
                d_out = grad[image, part, some].to(sums).reshape(-1, grad.shape[3])
                pairs = _Pairs(rows, query_of[:, : len(weight)], len(table))
                if d_values is not None:
                    found = pairs.sum_by_row(d_out, _shares(near, weight))
                    total = found if total is None else total.add_(found)
                if d_locations is not None or d_weights is not None:
                    d_points, d_weight = _gradients_of_points(pairs.dots(d_out, table), distances, near)
                    if d_weights is not None:
                        d_weights[image, part, some] = d_weight.view(-1, together, levels, points)
                    if d_locations is not None:
                        d_points *= weight * surroundings.size[:, : len(weight)]
                        d_locations[image, part, some] = d_points.T.view(-1, together, levels, points, 2)
            if d_values is not None and total is not None:
                d_values[image, :, some] = total.view(-1, together, values.shape[3])
    return d_values, None, d_locations, d_weights


class _Pairs:
    """All pairs of a query and a row that it takes, in the order of the rows: these are read one after the other."""

    def __init__(self, rows: Tensor, query_of: Tensor, count: int):
        narrow = torch.int16 if count <= torch.iinfo(torch.int16).max else torch.int32  # half the passes of its sort
        self.shape = rows.shape
        self.rows, self.order = rows.flatten().to(narrow).sort(stable=True)
        self.queries = query_of.flatten().index_select(0, self.order)
        self.bags = torch.searchsorted(self.rows, torch.arange(count, dtype=narrow), out_int32=True)

    def sum_by_row(self, d_out: Tensor, shares: Tensor) -> Tensor:
        """The gradient of the values from that of the output, [rows, d]."""
        return _sum_bags(d_out, self.queries, self.bags, shares.flatten().index_select(0, self.order))

    def dots(self, d_out: Tensor, table: Tensor) -> Tensor:
        """The products of rows and the output's gradient, [4, n]."""
        dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            d_out, table, self.rows.int(), self.bags, self.queries, 0
        )
        return torch.empty_like(dots).scatter_(0, self.order, dots).view(self.shape)


def _gradients_of_points(dots: Tensor, distances: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """From the products of the four pixels and the output's gradient, [4, n].

    Returns:
        The gradients of points of weight 1 in pixels, [axes, n], and of the weights, [n].
    """
    pixels = dots.unflatten(0, (2, 2))  # [lines, columns, n]
    by_line = (pixels * near[:, 0]).sum(1)
    by_column = (pixels * near[:, 1:]).sum(0)
    along = torch.stack([by_column, by_line], 1)
    return (along * _slope(distances)).sum(0), (by_line * near[:, 1]).sum(0)
