"""The reference's arithmetic with less copying, for eager mode on a CPU, where memory traffic takes much of the time.

A map's rows of channels go straight to their windows, shift included, and back; so do their gradients. Inference goes
by parts that fit into the caches.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor

from attnzoo.kernels._cpu import wants_gradient
from attnzoo.kernels._dispatch import is_plain_eager

from .windows import (
    Call,
    Partition,
    arrange_all,
    arrange_back,
    attend,
    make_partition,
    share_queries,
    to_map,
    to_windows,
)

PART_BYTES = 4 << 20  # of q, k and v


def by_parts(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    cosine_scale: Tensor | None,
    padding: Tensor | None,
    call: Call,
) -> Tensor:
    """The map [B, H, W, C] of the reference, for the same arguments."""
    cut, num_heads, qkv_layout, scale, dropout = call
    training = wants_gradient(q, k, v, bias, cosine_scale, padding)
    original = cut
    if cut.padded != cut.size:  # padding is a copy already: it takes the shift along
        q, k, v = arrange_all(q, k, v, cut, padding)
        cut = make_partition(cut.padded, cut.window, cut.dilation, (0, 0), False)
    shared = None
    if k is None or v is None:
        packed = q.unflatten(-1, (3, num_heads, -1) if qkv_layout == '3hd' else (num_heads, 3, -1))
        maps = [packed if qkv_layout == '3hd' else packed.transpose(-2, -3)]
    else:
        if q.shape != k.shape:
            shared = q.unflatten(-1, (num_heads, -1))
        maps = [x.unflatten(-1, (1, num_heads, -1)) for x in ((q, k, v) if shared is None else (k, v))]

    batch, head_dim = maps[0].shape[0], maps[0].shape[-1]
    if training:
        windows = [window for x in maps for window in _ToWindows.apply(x, cut)]
        if shared is not None:
            windows.insert(0, share_queries(shared, cut.groups))
        done = attend(windows[0], windows[1], windows[2], num_heads, bias, mask, scale, cosine_scale, dropout)
        out = _ToMap.apply(cut, num_heads, done)
    else:
        out = scratch = None
        image_bytes = max(1, 3 * cut.size[0] * cut.size[1] * num_heads * head_dim * q.element_size())
        images, rows = max(1, PART_BYTES // image_bytes), max(1, cut.tiles[0] * PART_BYTES // image_bytes)
        groups = cut.groups // cut.tiles[0]
        if max(cut.shift) > 0 and (images < batch or rows < cut.tiles[0]):
            # Rows on their way, in memory that all parts share: new pages are slow.
            tokens = min(images, batch) * min(rows, cut.tiles[0]) * groups * cut.window[0] * cut.window[1]
            scratch = q.new_empty(tokens * maps[0][0, 0, 0].numel())
        for row in range(0, cut.tiles[0], rows):
            tiles = slice(row, min(row + rows, cut.tiles[0]))
            own_mask = None if mask is None else mask[groups * row : groups * tiles.stop]
            for image in range(0, batch, images):
                part = slice(image, image + images)
                windows = [window for x in maps for window in _take(x[part], cut, tiles, scratch)]
                if shared is not None:
                    windows.insert(0, share_queries(shared[part], groups * (tiles.stop - row)))
                done = attend(
                    windows[0], windows[1], windows[2], num_heads, bias, own_mask, scale, cosine_scale, dropout,
                    in_place=True,
                )  # fmt: skip
                del windows
                if out is None:  # not before: the first part is often all there is, and uses the most memory by now
                    out = done.new_empty(batch, *cut.size, 1, num_heads, head_dim)
                _put(out[part], cut, tiles, done, scratch=scratch)
        assert out is not None, 'an empty batch has no parts'
    out = out.flatten(-3)
    return out if cut is original else arrange_back(out, original)


class _ToWindows(torch.autograd.Function):
    """Maps side by side [B, H, W, maps, heads, d] -> windows of each [B * G * heads, N, d]; `_ToMap` goes back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cut: Partition) -> tuple[Tensor, ...]:
        ctx.cut, ctx.heads = cut, x.shape[4]
        return _take(x, cut, slice(0, cut.tiles[0]))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        if is_plain_eager(*grads):
            return _ToMap.apply(ctx.cut, ctx.heads, *grads), None
        batch, head_dim = grads[0].shape[0] // (ctx.cut.groups * ctx.heads), grads[0].shape[2]
        maps = [to_map(grad, ctx.cut, ctx.heads).roll(ctx.cut.shift, (1, 2)) for grad in grads]
        return torch.stack([x.view(batch, *ctx.cut.size, ctx.heads, head_dim) for x in maps], 3), None


class _ToMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cut: Partition, heads: int, *windows: Tensor) -> Tensor:
        ctx.cut = cut
        batch = windows[0].shape[0] // (cut.groups * heads)
        x = windows[0].new_empty(batch, *cut.size, len(windows), heads, windows[0].shape[2])
        return _put(x, cut, slice(0, cut.tiles[0]), *windows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if is_plain_eager(grad):
            return None, None, *_ToWindows.apply(grad, ctx.cut)
        return None, None, *(to_windows(x, ctx.cut) for x in _shifted(grad, ctx.cut).unbind(3))


def _take(x: Tensor, cut: Partition, tiles: slice, scratch: Tensor | None = None) -> tuple[Tensor, ...]:
    """Contiguous windows of some rows of tiles."""
    if max(cut.shift) > 0:
        places = _places(cut, tiles)
        rows = _rows(x, places, x.shape[3], scratch)
        torch.index_select(x.flatten(0, 2), 0, _indices(x, cut, places), out=rows.flatten(0, 1))
        x = rows.unflatten(1, (-1, cut.window[0] * cut.window[1])).permute(3, 0, 1, 4, 2, 5)
    else:
        x = _by_tiles(x[:, _lines(cut, tiles)], cut).permute(7, 0, 1, 3, 4, 6, 8, 2, 5, 9)
    return x.reshape(x.shape[0], -1, cut.window[0] * cut.window[1], x.shape[-1]).unbind(0)


def _put(x: Tensor, cut: Partition, tiles: slice, *windows: Tensor, scratch: Tensor | None = None) -> Tensor:
    """The way back: fills those lines of x."""
    batch, _, _, _, heads, head_dim = x.shape
    if max(cut.shift) > 0:
        places, tokens = _places(cut, tiles), cut.window[0] * cut.window[1]
        rows = _rows(x, places, len(windows), scratch)
        for row, window in zip(rows.unbind(2), windows, strict=True):
            row.unflatten(1, (-1, tokens)).copy_(window.view(batch, -1, heads, tokens, head_dim).transpose(2, 3))
        x.flatten(0, 2).index_copy_(0, _indices(x, cut, places), rows.flatten(0, 1))
    else:
        shape = batch, -1, cut.dilation[0], cut.tiles[1], cut.dilation[1], heads, *cut.window, head_dim
        for one, window in zip(_by_tiles(x[:, _lines(cut, tiles)], cut).unbind(7), windows, strict=True):
            one.copy_(window.view(shape).permute(0, 1, 6, 2, 3, 7, 4, 5, 8))
    return x


def _rows(x: Tensor, places: slice, maps: int, scratch: Tensor | None) -> Tensor:
    """Room for tokens of maps like x, in the order of their windows: [B, tokens, maps, heads, d]."""
    shape = x.shape[0], places.stop - places.start, maps, x.shape[4], x.shape[5]
    return x.new_empty(shape) if scratch is None else scratch[: math.prod(shape)].view(shape)


def _lines(cut: Partition, tiles: slice) -> slice:
    return slice(tiles.start * cut.window[0] * cut.dilation[0], tiles.stop * cut.window[0] * cut.dilation[0])


def _by_tiles(x: Tensor, cut: Partition) -> Tensor:
    x = x.unflatten(2, (cut.tiles[1], cut.window[1], cut.dilation[1]))
    return x.unflatten(1, (-1, cut.window[0], cut.dilation[0]))


def _places(cut: Partition, tiles: slice) -> slice:
    """Where the tokens of some rows of tiles stand in `_order`."""
    row = cut.window[0] * cut.padded[1]
    return slice(tiles.start * row, tiles.stop * row)


def _indices(x: Tensor, cut: Partition, places: slice) -> Tensor:
    """Which positions of all images of x these tokens are."""
    one, image = _order(cut)[places], x.shape[1] * x.shape[2]
    return (
        one if x.shape[0] == 1 else (torch.arange(0, x.shape[0] * image, image, device='cpu')[:, None] + one).flatten()
    )


def _shifted(x: Tensor, cut: Partition) -> Tensor:
    return x.roll((-cut.shift[0], -cut.shift[1]), (1, 2))


@functools.lru_cache(maxsize=8)
def _order(cut: Partition) -> Tensor:
    """The position in a map of each token, window after window of the shifted map."""
    # The device is named, because the result outlives a default that is set for a while.
    positions = torch.arange(cut.size[0] * cut.size[1], device='cpu').view(1, *cut.size)
    return _by_tiles(_shifted(positions, cut), cut).permute(0, 1, 3, 4, 6, 2, 5).flatten()
