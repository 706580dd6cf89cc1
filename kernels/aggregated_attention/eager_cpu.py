"""The reference's arithmetic by parts, for eager mode on a CPU: both passes written out by hand.

A part is a few (image, head) pairs whose maps fit into the caches. They lie channels first, and each row of a map has
a border of zeros behind it, so that the map under a neighbour is one contiguous slice: the same distance leads from
every position to this neighbour. What stands in the border of queries and scores is never read.

The arithmetic is in float32 at least: half precision would be no faster here, and less exact.

Legend: B images, H x W map, N heads of d channels, G pairs of a part, P positions of a pooled map, o neighbours,
n = H * (W + border) positions, m positions with the border on all sides, K = o + P keys.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .neighbours import beyond_border, count_keys

# Of the queries of a part. Twice that for each thread is faster, where the parts are still a fraction of the whole: a
# thread takes the same share of each step, which then is in its own cache.
PART_BYTES = 600 << 10
_SHARE = 4  # parts at least, of larger ones


class Parameters(NamedTuple):
    """What all images share, for some heads."""

    embedding: Tensor  # [N, d, 1]
    factor: Tensor  # [N, 1, n], zero in the border
    bias: Tensor  # [N, K, n], minus infinity for neighbours off the map
    tokens: Tensor  # [N, d, o]
    token_bias: Tensor  # [N, o, 1]


class Maps(NamedTuple):
    """A part's maps. The buffers are used again by the next part: new memory is slow."""

    q: Tensor  # [G, d, n], of length 1 along d
    scaled_q: Tensor  # [G, d, n]
    k: Tensor  # [G, d, m], of length 1 along d
    v: Tensor  # [G, d, m]
    scores: Tensor  # [G, K, n], then their softmax
    length_q: Tensor  # [G, 1, n]
    length_k: Tensor  # [G, 1, m]


class Layout:
    """How maps of one size are cut into parts and laid out."""

    def __init__(self, q: Tensor, pool_kv: Tensor, num_heads: int, window: tuple[int, int]):
        self.batch, self.height, self.width, channels = q.shape
        self.num_heads, self.head_dim, self.window = num_heads, channels // num_heads, window
        self.pooled = pool_kv.shape[1] * pool_kv.shape[2]
        self.dtype = torch.promote_types(q.dtype, torch.float32)
        border_h, border_w = window[0] - 1, window[1] - 1
        self.row = self.width + border_w
        self.positions, self.with_border = self.height * self.row, (self.height + border_h + 1) * self.row
        self.shifts = [y * self.row + x for y in range(window[0]) for x in range(window[1])]
        map_bytes = self.head_dim * self.positions * torch.finfo(self.dtype).bits // 8
        pairs = max(1, PART_BYTES // map_bytes)
        pairs = max(pairs, min(2 * torch.get_num_threads() * pairs, self.batch * num_heads // _SHARE))
        self.heads, self.images = min(pairs, num_heads), max(1, pairs // num_heads)

    def head_parts(self) -> Iterator[slice]:
        return (slice(i, min(i + self.heads, self.num_heads)) for i in range(0, self.num_heads, self.heads))

    def image_parts(self) -> Iterator[slice]:
        return (slice(i, min(i + self.images, self.batch)) for i in range(0, self.batch, self.images))

    def new(self, *shape: int) -> Tensor:
        return torch.zeros(self.images * self.heads, *shape, dtype=self.dtype)

    def by_head(self, x: Tensor) -> Tensor:
        """View of a map or of packed maps [B, H, W, ...] -> [B, ..., N, d, H, W]."""
        x = x.unflatten(-1, (-1, self.num_heads, self.head_dim)).permute(0, 3, 4, 5, 1, 2)
        return x.squeeze(1) if x.shape[1] == 1 else x

    def inner(self, x: Tensor) -> Tensor:
        """View of the positions on the map of [..., n] or [..., m]: [..., H, W]."""
        if x.shape[-1] == self.positions:
            return x.unflatten(-1, (self.height, self.row))[..., : self.width]
        top, left = self.window[0] // 2, self.window[1] // 2
        x = x.unflatten(-1, (-1, self.row))
        return x[..., top : top + self.height, left : left + self.width]

    def fill(self, target: Tensor, source: Tensor) -> None:
        """[images, N, d, H, W] -> [G, d, n or m]; the border stays as it is."""
        self.inner(target.unflatten(0, source.shape[:2])).copy_(source)

    def neighbours(self, x: Tensor) -> list[Tensor]:
        """[G, d, m] -> for each neighbour the map under it, [G, d, n]."""
        return [x[..., s : s + self.positions] for s in self.shifts]

    def parameters(
        self,
        heads: slice,
        temperature: Tensor,
        query_embedding: Tensor,
        local_bias: Tensor,
        pool_bias: Tensor,
        tokens: Tensor,
        token_bias: Tensor,
    ) -> Parameters:
        exact = [
            x[heads].to(self.dtype) for x in (temperature, query_embedding, local_bias, pool_bias, tokens, token_bias)
        ]
        temperature, query_embedding, local_bias, pool_bias, tokens, token_bias = exact
        count, size = len(self.shifts), (self.height, self.width)
        bias = temperature.new_zeros(temperature.shape[0], count + self.pooled, self.positions)
        inner = self.inner(bias)
        off = beyond_border(*size, self.window, bias.device)
        inner[:, :count] = local_bias[:, :, None, None].expand(-1, -1, *size).masked_fill(off, float('-inf'))
        inner[:, count:] = pool_bias.mT.unflatten(2, size)
        factor = temperature.new_zeros(temperature.shape[0], 1, self.positions)
        self.inner(factor).copy_(F.softplus(temperature).unsqueeze(3) * self.log_keys(temperature))
        return Parameters(query_embedding.mT, factor, bias, tokens, token_bias.mT)

    def log_keys(self, like: Tensor) -> Tensor:
        return count_keys(self.height, self.width, self.window, self.pooled, like).log()


class Workspace:
    """Buffers for the largest part, which all parts use."""

    def __init__(self, layout: Layout):
        self.layout = layout
        d, n, m, keys = layout.head_dim, layout.positions, layout.with_border, len(layout.shifts) + layout.pooled
        self.maps = Maps(*(layout.new(*s) for s in ((d, n), (d, n), (d, m), (d, m), (keys, n), (1, n), (1, m))))
        self._scratch = layout.new(d, m).flatten()

    def scratch_like(self, x: Tensor) -> Tensor:
        """Room for a product as large as a map of the part, until the next."""
        return self._scratch[: x.numel()].view(x.shape)

    def attend(self, q: Tensor, kv: Tensor, pool_k: Tensor, shared: Parameters) -> Maps:
        """A part's maps, from views [images, N, d, H, W] of the queries and [images, 2, N, d, H, W] of the others."""
        layout, pairs = self.layout, q.shape[0] * q.shape[1]
        maps = Maps(*(x[:pairs] for x in self.maps))
        layout.fill(maps.q, q)
        layout.fill(maps.k, kv[:, 0])
        layout.fill(maps.v, kv[:, 1])
        for x, length in ((maps.q, maps.length_q), (maps.k, maps.length_k)):
            square = torch.mul(x, x, out=self.scratch_like(x))  # norms along an axis that is not the last are slow
            torch.sum(square, 1, keepdim=True, out=length)
            x.div_(length.sqrt_().clamp_(min=1e-12))
        torch.add(per_head(maps.q, shared.embedding), shared.embedding, out=per_head(maps.scaled_q, shared.embedding))
        per_head(maps.scaled_q, shared.factor).mul_(shared.factor)

        product = self.scratch_like(maps.q)
        for o, k in enumerate(layout.neighbours(maps.k)):
            torch.mul(maps.scaled_q, k, out=product)
            torch.sum(product, 1, out=maps.scores[:, o])
        torch.bmm(pool_k, maps.scaled_q, out=maps.scores[:, len(layout.shifts) :])
        per_head(maps.scores, shared.bias).add_(shared.bias)
        torch.softmax(maps.scores, 1, out=maps.scores)
        return maps


def per_head(x: Tensor, shared: Tensor) -> Tensor:
    """[G, ...] -> [images, N, ...], which broadcasts with what all images share."""
    return x.unflatten(0, (-1, shared.shape[0]))


def pooled_maps(pool_kv: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Keys of length 1 and values of the pooled map, [B, N, P, d]."""
    packed = pool_kv.to(layout.dtype).flatten(1, 2).unflatten(2, (2, layout.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return F.normalize(packed[0], dim=-1), packed[1].contiguous()


def token_weights(q: Tensor, shared: Parameters) -> Tensor:
    """What is added to the weights of the neighbours, [G, o, n]."""
    weights = shared.tokens.mT @ per_head(q, shared.tokens) + shared.token_bias
    return weights.flatten(0, 1)


def forward(q: Tensor, kv: Tensor, pool_kv: Tensor, *parameters_and_shape: Any) -> tuple[Tensor, tuple[()]]:
    *parameters, num_heads, window = parameters_and_shape
    layout = Layout(q, pool_kv, num_heads, window)
    workspace, count = Workspace(layout), len(layout.shifts)
    pool_k, pool_v = pooled_maps(pool_kv, layout)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    all_q, all_kv, all_out = layout.by_head(q), layout.by_head(kv), layout.by_head(out)
    for heads in layout.head_parts():
        shared = layout.parameters(heads, *parameters)
        for images in layout.image_parts():
            keys = pool_k[images, heads].flatten(0, 1)
            maps = workspace.attend(all_q[images, heads], all_kv[images, :, heads], keys, shared)
            local = maps.scores[:, :count].add_(token_weights(maps.q, shared))
            total = torch.bmm(
                pool_v[images, heads].flatten(0, 1).mT, maps.scores[:, count:], out=workspace.scratch_like(maps.q)
            )
            for o, v in enumerate(layout.neighbours(maps.v)):
                total.addcmul_(v, local[:, o : o + 1])
            target = all_out[images, heads]
            target.copy_(layout.inner(total).unflatten(0, target.shape[:2]))
    return out, ()


def backward(
    grad: Tensor,
    needs: list[bool],
    kept: list[Tensor],
    q: Tensor,
    kv: Tensor,
    pool_kv: Tensor,
    *parameters_and_shape: Any,
) -> tuple[Tensor | None, ...]:
    *parameters, num_heads, window = parameters_and_shape
    temperature = parameters[0]
    layout = Layout(q, pool_kv, num_heads, window)
    workspace, count = Workspace(layout), len(layout.shifts)
    with torch.enable_grad():  # the pooled map is small: autograd takes its keys and values back
        pooled_leaf = pool_kv.detach().requires_grad_()
        pooled = pooled_maps(pooled_leaf, layout)
    pool_k, pool_v = (x.detach() for x in pooled)
    d_q, d_kv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, kv))
    d_pool_k, d_pool_v = torch.empty_like(pool_k), torch.empty_like(pool_v)
    all_d_out, all_q, all_kv, all_d_q, all_d_kv = (layout.by_head(x) for x in (grad, q, kv, d_q, d_kv))
    d_parameters = [torch.empty_like(x, dtype=layout.dtype) for x in parameters]
    buffers = [torch.zeros_like(x) for x in (workspace.maps.q, workspace.maps.v, workspace.maps.v)]
    for heads in layout.head_parts():
        shared = layout.parameters(heads, *parameters)
        d_shared = Parameters(*(torch.zeros_like(x) for x in shared))
        for images in layout.image_parts():
            keys, values = pool_k[images, heads].flatten(0, 1), pool_v[images, heads].flatten(0, 1)
            maps = workspace.attend(all_q[images, heads], all_kv[images, :, heads], keys, shared)
            d_out, d_k, d_v = (x[: len(keys)] for x in buffers)
            product = workspace.scratch_like(d_out)
            layout.fill(d_out, all_d_out[images, heads])
            d_k.zero_()
            d_v.zero_()

            # Values and weights
            local = maps.scores[:, :count] + token_weights(maps.q, shared)
            d_scores = torch.empty_like(maps.scores)
            for o, (v, d_neighbour) in enumerate(zip(layout.neighbours(maps.v), layout.neighbours(d_v), strict=True)):
                torch.mul(d_out, v, out=product)
                torch.sum(product, 1, out=d_scores[:, o])
                d_neighbour.addcmul_(d_out, local[:, o : o + 1])
            torch.bmm(values, d_out, out=d_scores[:, count:])
            d_values = torch.bmm(maps.scores[:, count:], d_out.mT)
            d_local = per_head(d_scores[:, :count], shared.tokens)
            d_shared.tokens.add_((per_head(maps.q, shared.tokens) @ d_local.mT).sum(0))
            d_shared.token_bias.add_(d_local.sum((0, 3)).unsqueeze(2))
            d_unit_q = (shared.tokens @ d_local).flatten(0, 1)

            # Scores
            d_scores.mul_(maps.scores)
            d_scores.addcmul_(maps.scores, d_scores.sum(1, keepdim=True), value=-1)
            d_shared.bias.add_(per_head(d_scores, shared.bias).sum(0))
            d_scaled_q = torch.bmm(keys.mT, d_scores[:, count:])
            d_keys = torch.bmm(d_scores[:, count:], maps.scaled_q.mT)
            for o, (k, d_neighbour) in enumerate(zip(layout.neighbours(maps.k), layout.neighbours(d_k), strict=True)):
                d_score = d_scores[:, o : o + 1]
                d_scaled_q.addcmul_(k, d_score)
                d_neighbour.addcmul_(maps.scaled_q, d_score)

            # Queries and keys before they were scaled
            torch.add(per_head(maps.q, shared.embedding), shared.embedding, out=per_head(product, shared.embedding))
            d_factor = product.mul_(d_scaled_q).sum(1, keepdim=True)
            d_shared.factor.add_(per_head(d_factor, shared.factor).sum(0))
            d_embedded = per_head(d_scaled_q, shared.factor).mul_(shared.factor)
            d_shared.embedding.add_(d_embedded.sum((0, 3)).unsqueeze(2))
            d_unit_q.add_(d_scaled_q)
            for x, length, d_unit in ((maps.q, maps.length_q, d_unit_q), (maps.k, maps.length_k, d_k)):
                along = torch.mul(d_unit, x, out=workspace.scratch_like(x)).sum(1, keepdim=True)
                d_unit.addcmul_(x, along, value=-1).div_(length)

            target, target_kv = all_d_q[images, heads], all_d_kv[images, :, heads]
            target.copy_(layout.inner(d_unit_q).unflatten(0, target.shape[:2]))
            for one, d_map in zip(target_kv.unbind(1), (d_k, d_v), strict=True):
                one.copy_(layout.inner(d_map).unflatten(0, target.shape[:2]))
            d_pool_k[images, heads] = d_keys.unflatten(0, target.shape[:2])
            d_pool_v[images, heads] = d_values.unflatten(0, target.shape[:2])
        d_temperature, d_embedding, d_local_bias, d_pool_bias, d_tokens, d_token_bias = (x[heads] for x in d_parameters)
        by_factor = layout.inner(d_shared.factor) * layout.log_keys(d_temperature)
        d_temperature.copy_(by_factor.sum((2, 3)).unsqueeze(2) * temperature[heads].to(layout.dtype).sigmoid())
        d_embedding.copy_(d_shared.embedding.mT)
        d_local_bias.copy_(d_shared.bias[:, :count].sum(2))
        d_pool_bias.copy_(layout.inner(d_shared.bias[:, count:]).flatten(2).mT)
        d_tokens.copy_(d_shared.tokens)
        d_token_bias.copy_(d_shared.token_bias.mT)
    (d_pool_kv,) = torch.autograd.grad(pooled, pooled_leaf, (d_pool_k, d_pool_v))
    in_their_types = [x.to(parameter.dtype) for x, parameter in zip(d_parameters, parameters, strict=True)]
    return d_q, d_kv, d_pool_kv, *in_their_types, None, None
