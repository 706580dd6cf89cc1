"""The ops' arithmetic by tiles, for eager mode on a CPU: both passes written out by hand.

The keys of all queries of a tile lie in one window, so that products give the scores of the tile with it, of which a
table of biases excludes what a query does not have. Scores are computed again in the backward pass, a part at a time.

Legend: B images, H x W map, N heads of d channels, C = N * d, K = kh * kw keys of a query; G tiles of all images, heads
and sub-grids of a part, g of them an image and head, T queries of a tile, S keys of its window.
"""

from typing import Any

import torch
from torch import Tensor

from attnzoo.kernels._tiles import Tiling

from .neighbours import cut_axis, neighbours_of_tiles


class Neighborhoods:
    """How the maps of a call are cut, and what is the same for all images."""

    def __init__(
        self,
        x: Tensor,
        num_heads: int,
        kernel: tuple[int, int],
        dilation: tuple[int, int],
        is_causal: tuple[bool, bool],
        valid: tuple[int, int] | None,
    ):
        size = (x.shape[1], x.shape[2])
        self.kernel, self.is_causal, self.valid = kernel, is_causal, size if valid is None else valid
        self.partial = any(is_causal) or valid is not None
        self.unbiased = (2 * kernel[0] - 1) * (2 * kernel[1] - 1)  # behind the last place of a flat bias
        self.axes = [cut_axis(*settings) for settings in zip(size, kernel, dilation, is_causal, strict=True)]
        self.tiling = Tiling(self.axes[0], self.axes[1], num_heads, x.dtype)

    def offsets(self, rows: slice) -> Tensor:
        """The place of each pair [g, T, S] in a flat bias; `unbiased` where the query does not have the key."""
        (row, has_row, _), (column, has_column, _) = self._tables(rows)
        row = (row * (2 * self.kernel[1] - 1)).masked_fill(~has_row, self.unbiased)
        return _on_map(row, column.masked_fill(~has_column, self.unbiased)).clamp_(max=self.unbiased)

    def own_keys(self, rows: slice) -> Tensor:
        """Where in the window a query's own keys are, [g, T, K]."""
        (_, _, row), (_, _, column) = self._tables(rows)
        return _on_map(row * self.axes[1].window, column)

    def _tables(self, rows: slice) -> list[tuple[Tensor, Tensor, Tensor]]:
        tiles = (rows, slice(0, self.axes[1].count))
        settings = zip(self.axes, self.kernel, self.is_causal, self.valid, tiles, strict=True)
        return [neighbours_of_tiles(*of_axis) for of_axis in settings]

    def addend(self, bias: Tensor | None, offsets: Tensor) -> Tensor:
        """What is added to scores: the bias or zero, and minus infinity where a query does not have a key.

        For each head if there is a bias: [N or 1, g, T, S].
        """
        table = torch.zeros(1 if bias is None else len(bias), self.unbiased + 1, dtype=self.tiling.dtype)
        if bias is not None:
            table[:, : self.unbiased] = bias.flatten(1)
        table[:, self.unbiased] = float('-inf')
        return table.index_select(1, offsets.flatten()).view(-1, *offsets.shape)

    def spread(self, values: Tensor, own: Tensor, offsets: Tensor) -> Tensor:
        """Values of the queries' own keys [G, T, K], among zeros for all of the window: [G, T, S]."""
        values = values.view(-1, *own.shape)
        spread = values.new_zeros(len(values), *offsets.shape)
        spread.scatter_(3, own.expand_as(values), values)
        return self.exclude(spread.flatten(0, 1), offsets)

    def exclude(self, values: Tensor, offsets: Tensor) -> Tensor:
        """Values [G, T, S], zero from now on where a causal axis or padding excludes a key."""
        if self.partial:
            values.view(-1, *offsets.shape).masked_fill_(offsets == self.unbiased, 0.0)
        return values


def _on_map(rows: Tensor, columns: Tensor) -> Tensor:
    """Sums of the tables of both axes, [residues, tiles, tile, n]: [g, T, n of rows * n of columns]."""
    rows, columns = rows[:, None, :, None, :, None, :, None], columns[None, :, None, :, None, :, None, :]
    return (rows + columns).flatten(6).flatten(4, 5).flatten(0, 3)


def _gather(values: Tensor, own: Tensor) -> Tensor:
    """Of values for all of the window [G, T, S], those of the queries' own keys: [G, T, K]."""
    values = values.view(-1, *own.shape[:2], values.shape[2])
    return values.gather(3, own.expand(len(values), -1, -1, -1))


def _score(queries: Tensor, keys: Tensor, addend: Tensor, scale: float, num_heads: int) -> Tensor:
    """[G, T, d] and [G, S, d] -> [G, T, S]."""
    scores = torch.bmm(queries, keys.mT)
    by_head = scores.view(-1, num_heads, *addend.shape[1:])
    torch.add(addend, by_head, alpha=scale, out=by_head)
    return scores


def _attend(queries: Tensor, keys: Tensor, addend: Tensor, scale: float, num_heads: int) -> Tensor:
    scores = _score(queries, keys, addend, scale, num_heads)
    return torch.softmax(scores, -1, out=scores)


def _to_map(x: Tensor) -> Tensor:
    """Values for each key [B, N, H, W, K] as a map [B, H, W, N * K]."""
    return x.permute(0, 2, 3, 1, 4).flatten(3)


def _from_map(x: Tensor, num_heads: int) -> Tensor:
    """The way back."""
    return x.unflatten(3, (num_heads, -1)).permute(0, 3, 1, 2, 4)


class _BiasGradient:
    """Sums the gradients of all pairs that have a bias in common, in float32 at least."""

    def __init__(self, bias: Tensor | None, needed: bool):
        self.bias = bias if needed else None
        if self.bias is not None:
            self.dtype = torch.promote_types(self.bias.dtype, torch.float32)
            # The last one is that of the pairs without a bias, and of no use.
            self.total = torch.zeros(len(self.bias), self.bias[0].numel() + 1, dtype=self.dtype)

    def start(self, offsets: Tensor) -> None:
        """Before the images of some rows of tiles."""
        if self.bias is not None:
            self.of_pairs = torch.zeros(len(self.bias), offsets.numel(), dtype=self.dtype)

    def add(self, d_scores: Tensor) -> None:
        if self.bias is not None:
            for image in d_scores.view(-1, *self.of_pairs.shape):  # in half precision faster than a sum over images
                self.of_pairs.add_(image)

    def finish(self, offsets: Tensor) -> None:
        """Behind them."""
        if self.bias is not None:
            self.total.index_add_(1, offsets.flatten(), self.of_pairs)

    def result(self) -> Tensor | None:
        return None if self.bias is None else self.total[:, :-1].view(self.bias.shape).to(self.bias.dtype)


def forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, num_heads: int, *settings: Any
) -> tuple[Tensor, tuple[()]]:
    *cut, scale, valid = settings
    neighborhoods = Neighborhoods(q, num_heads, *cut, valid)  # type: ignore[call-arg]
    tiling, out = neighborhoods.tiling, neighborhoods.tiling.new_queries(len(q), q.shape[3])
    for rows, parts in tiling.parts(len(q), 2 * (q.shape[3] // num_heads)):
        addend = neighborhoods.addend(bias, neighborhoods.offsets(rows))
        for part in parts:
            weights = _attend(tiling.queries(q, part), tiling.windows(k, part), addend, scale, num_heads)
            tiling.put_queries(out, part, torch.bmm(weights, tiling.windows(v, part)))
    return tiling.crop_queries(out), ()


def backward(
    grad: Tensor,
    needs: list[bool],
    kept: list[Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    num_heads: int,
    *settings: Any,
) -> tuple[Tensor | None, ...]:
    *cut, scale, valid = settings
    neighborhoods = Neighborhoods(q, num_heads, *cut, valid)  # type: ignore[call-arg]
    tiling = neighborhoods.tiling
    d_q, d_k, d_v = (new(len(q), q.shape[3]) for new in (tiling.new_queries, tiling.new_keys, tiling.new_keys))
    d_bias = _BiasGradient(bias, needs[3])
    for rows, parts in tiling.parts(len(q), 2 * (q.shape[3] // num_heads)):
        offsets = neighborhoods.offsets(rows)
        addend = neighborhoods.addend(bias, offsets)
        d_bias.start(offsets)
        for part in parts:
            queries, keys, d_out = tiling.queries(q, part), tiling.windows(k, part), tiling.queries(grad, part)
            weights = _attend(queries, keys, addend, scale, num_heads)
            tiling.add_windows(d_v, part, torch.bmm(weights.mT, d_out))
            d_weights = torch.bmm(d_out, tiling.windows(v, part).mT)
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_bias.add(d_scores)
            tiling.put_queries(d_q, part, torch.bmm(d_scores, keys).mul_(scale))
            tiling.add_windows(d_k, part, torch.bmm(d_scores.mT, queries).mul_(scale))
        d_bias.finish(offsets)
    grads = tiling.crop_queries(d_q), tiling.crop_keys(d_k), tiling.crop_keys(d_v)
    return *grads, d_bias.result(), None, *(None for _ in settings)


def forward_qk(q: Tensor, k: Tensor, bias: Tensor | None, num_heads: int, *settings: Any) -> tuple[Tensor, tuple[()]]:
    *cut, scale, valid = settings
    neighborhoods = Neighborhoods(q, num_heads, *cut, valid)  # type: ignore[call-arg]
    tiling = neighborhoods.tiling
    out = tiling.new_queries(len(q), num_heads * neighborhoods.kernel[0] * neighborhoods.kernel[1])
    for rows, parts in tiling.parts(len(q), q.shape[3] // num_heads):
        addend, own = neighborhoods.addend(bias, neighborhoods.offsets(rows)), neighborhoods.own_keys(rows)
        for part in parts:
            scores = _score(tiling.queries(q, part), tiling.windows(k, part), addend, scale, num_heads)
            tiling.put_queries(out, part, _gather(scores, own))
    return _from_map(tiling.crop_queries(out), num_heads), ()


def backward_qk(
    grad: Tensor,
    needs: list[bool],
    kept: list[Tensor],
    q: Tensor,
    k: Tensor,
    bias: Tensor | None,
    num_heads: int,
    *settings: Any,
) -> tuple[Tensor | None, ...]:
    *cut, scale, valid = settings
    neighborhoods = Neighborhoods(q, num_heads, *cut, valid)  # type: ignore[call-arg]
    tiling, of_keys = neighborhoods.tiling, _to_map(grad)
    d_q, d_k = (new(len(q), q.shape[3]) for new in (tiling.new_queries, tiling.new_keys))
    d_bias = _BiasGradient(bias, needs[2])
    for rows, parts in tiling.parts(len(q), q.shape[3] // num_heads):
        offsets, own = neighborhoods.offsets(rows), neighborhoods.own_keys(rows)
        d_bias.start(offsets)
        for part in parts:
            d_scores = neighborhoods.spread(tiling.queries(of_keys, part), own, offsets)
            d_bias.add(d_scores)
            tiling.put_queries(d_q, part, torch.bmm(d_scores, tiling.windows(k, part)).mul_(scale))
            tiling.add_windows(d_k, part, torch.bmm(d_scores.mT, tiling.queries(q, part)).mul_(scale))
        d_bias.finish(offsets)
    grads = tiling.crop_queries(d_q), tiling.crop_keys(d_k)
    return *grads, d_bias.result(), None, *(None for _ in settings)


def forward_av(weights: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, tuple[()]]:
    neighborhoods = Neighborhoods(v, weights.shape[1], *settings)
    tiling, of_keys = neighborhoods.tiling, _to_map(weights)
    out = tiling.new_queries(len(v), v.shape[3])
    for rows, parts in tiling.parts(len(v), v.shape[3] // tiling.num_heads):
        offsets, own = neighborhoods.offsets(rows), neighborhoods.own_keys(rows)
        for part in parts:
            spread = neighborhoods.spread(tiling.queries(of_keys, part), own, offsets)
            tiling.put_queries(out, part, torch.bmm(spread, tiling.windows(v, part)))
    return tiling.crop_queries(out), ()


def backward_av(
    grad: Tensor, needs: list[bool], kept: list[Tensor], weights: Tensor, v: Tensor, *settings: Any
) -> tuple[Tensor | None, ...]:
    neighborhoods = Neighborhoods(v, weights.shape[1], *settings)
    tiling, of_keys = neighborhoods.tiling, _to_map(weights)
    d_weights, d_v = tiling.new_queries(len(v), of_keys.shape[3]), tiling.new_keys(len(v), v.shape[3])
    for rows, parts in tiling.parts(len(v), v.shape[3] // tiling.num_heads):
        offsets, own = neighborhoods.offsets(rows), neighborhoods.own_keys(rows)
        for part in parts:
            d_out = tiling.queries(grad, part)
            spread = neighborhoods.spread(tiling.queries(of_keys, part), own, offsets)
            tiling.add_windows(d_v, part, torch.bmm(spread.mT, d_out))
            d_spread = neighborhoods.exclude(torch.bmm(d_out, tiling.windows(v, part).mT), offsets)
            tiling.put_queries(d_weights, part, _gather(d_spread, own))
    d_of_keys = _from_map(tiling.crop_queries(d_weights), weights.shape[1])
    return d_of_keys, tiling.crop_keys(d_v), *(None for _ in settings)
