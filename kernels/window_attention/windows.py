"""How window attention cuts a map into windows, and what happens inside them.

Legend: B images, H x W map, C = heads * d channels, window of Wh x Ww = N tokens, G windows in an image's padded map.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attnzoo.kernels._cpu import prefers_products
from attnzoo.kernels._math import normalize

# Added, not excluded: large logits (SwinV2's reach 116) see across the seam, as in the published networks.
SHIFT_MASK = -100.0
ONE_TILE = 64  # tokens, in kernels
PADDING_MASK = -3e4  # excludes a key in every dtype (its exp is 0), and a window of nothing but padding stays finite


class Partition(NamedTuple):
    """How a map is cut: into tiles of window * dilation positions, each of which holds the windows of all residues."""

    size: tuple[int, int]
    window: tuple[int, int]
    dilation: tuple[int, int]
    shift: tuple[int, int]
    pad_after_shift: bool
    tiles: tuple[int, int]
    padded: tuple[int, int]  # the map's size, rounded up to whole tiles
    groups: int  # G


class Call(NamedTuple):
    """What an op is asked for, beside its tensors: worked out once a call."""

    cut: Partition
    num_heads: int
    qkv_layout: str
    scale: float | None  # None: d ** -0.5
    dropout: float


def is_in_tiles(call: Call) -> bool:
    """Whether a window is more than one tile of the kernels."""
    return call.cut.window[0] * call.cut.window[1] > ONE_TILE


def make_partition(
    size: tuple[int, int],
    window: tuple[int, int],
    dilation: tuple[int, int],
    shift: tuple[int, int],
    pad_after_shift: bool,
) -> Partition:
    tile_h, tile_w = window[0] * dilation[0], window[1] * dilation[1]
    # A comparison, which torch.compile decides: for a grid, whose dilation grows with the map, it would else spend
    # minutes on expressions that divide the map's size by itself.
    tiles_h = 1 if tile_h >= size[0] else (size[0] + tile_h - 1) // tile_h
    tiles_w = 1 if tile_w >= size[1] else (size[1] + tile_w - 1) // tile_w
    tiles = (tiles_h, tiles_w)
    padded = (tiles[0] * tile_h, tiles[1] * tile_w)
    groups = tiles[0] * dilation[0] * tiles[1] * dilation[1]
    return Partition(size, window, dilation, shift, pad_after_shift, tiles, padded, groups)


def split_heads(
    q: Tensor, k: Tensor | None, v: Tensor | None, num_heads: int, qkv_layout: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Views [B, H, W, heads, d] of q, k and v, taken apart where they come packed."""
    if k is not None and v is not None:
        return q.unflatten(-1, (num_heads, -1)), k.unflatten(-1, (num_heads, -1)), v.unflatten(-1, (num_heads, -1))
    if qkv_layout == '3hd':
        q, k, v = q.unflatten(-1, (3, num_heads, -1)).unbind(-3)
    else:
        q, k, v = q.unflatten(-1, (num_heads, 3, -1)).unbind(-2)
    return q, k, v


def dense_bias(bias: Tensor, bias_index: Tensor | None) -> Tensor:
    """[heads, N, N]: the bias itself, or the row of a table [T, heads] that each pair of tokens [N, N] takes."""
    if bias_index is None:
        return bias
    return bias.t().index_select(1, bias_index.flatten()).unflatten(1, bias_index.shape)


def attention_mask(
    cut: Partition,
    mask_padding: bool,
    dtype: torch.dtype,
    device: torch.device,
    across_seam: float = SHIFT_MASK,  # TorchScript reads a constant of the module only as a default
    padded_key: float = PADDING_MASK,
) -> Tensor | None:
    """What is added to the scores of an image's windows, [G, 1, N, N], or None where nothing is."""
    tokens = cut.window[0] * cut.window[1]
    mask: Tensor | None = None
    if cut.shift[0] > 0 or cut.shift[1] > 0:
        region = 3 * _per_window(_region(cut, 0, device), cut, 0) + _per_window(_region(cut, 1, device), cut, 1)
        region = region.reshape(cut.groups, tokens)
        across = region.unsqueeze(1) != region.unsqueeze(2)
        mask = torch.zeros(across.shape, dtype=dtype, device=device).masked_fill(across, across_seam)
    if mask_padding and cut.padded != cut.size:
        outside_h = _per_window(_is_padding(cut, 0, device), cut, 0)
        outside_w = _per_window(_is_padding(cut, 1, device), cut, 1)
        outside = (outside_h | outside_w).reshape(cut.groups, 1, tokens)
        if mask is None:
            mask = torch.zeros((cut.groups, tokens, tokens), dtype=dtype, device=device)
        mask = mask.masked_fill(outside, padded_key)
    return None if mask is None else mask.unsqueeze(1)


def _region(cut: Partition, axis: int, device: torch.device) -> Tensor:
    """Which of the pieces that the cyclic shift puts side by side each position of the shifted axis lies in."""
    position = torch.arange(cut.padded[axis], device=device)
    if cut.shift[axis] == 0:
        return torch.zeros_like(position)
    last_window, seam = cut.padded[axis] - cut.window[axis], cut.padded[axis] - cut.shift[axis]
    return (position >= last_window).long() + (position >= seam).long()


def _is_padding(cut: Partition, axis: int, device: torch.device) -> Tensor:
    position = torch.arange(cut.padded[axis], device=device)
    if not cut.pad_after_shift:
        position = (position + cut.shift[axis]) % cut.padded[axis]
    return position >= cut.size[axis]


def _per_window(positions: Tensor, cut: Partition, axis: int) -> Tensor:
    """A property of an axis's positions, spread so that those of both axes broadcast to [Gh, Gw, Wh, Ww]."""
    dilation, window = cut.dilation[axis], cut.window[axis]
    positions = positions.view(cut.tiles[axis], window, dilation).transpose(1, 2).reshape(-1, window)
    return positions[:, None, :, None] if axis == 0 else positions[None, :, None, :]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    bias: Tensor | None,
    mask: Tensor | None,
    scale: float | None,
    cosine_scale: Tensor | None,
    dropout: float,
    in_place: bool = False,
) -> Tensor:
    """Attention of windows [B * G * heads, N, d]; the mask is of G windows. In place: without gradients."""
    tokens = q.shape[1]
    if cosine_scale is not None:
        q, k = normalize(q), normalize(k)
    elif in_place and mask is None and dropout == 0.0 and not prefers_products(tokens, q.element_size() <= 2, False):
        q, k, v = q.unflatten(0, (-1, heads)), k.unflatten(0, (-1, heads)), v.unflatten(0, (-1, heads))
        bias = None if bias is None else bias.detach().unsqueeze(0)  # of three dimensions it would not be fused
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale).flatten(0, 1)
    # Products of contiguous batches, which give the bias its gradient.
    groups = 1 if mask is None else mask.shape[0]
    scores = torch.bmm(q, k.transpose(1, 2)).view(-1, groups, heads, tokens, tokens)
    factor = q.shape[2] ** -0.5 if scale is None else scale
    if cosine_scale is not None:
        scores = scores * cosine_scale.to(scores.dtype).view(heads, 1, 1)
        factor = 1.0
    if bias is not None and in_place:
        torch.add(bias, scores, alpha=factor, out=scores)
    elif bias is not None:
        scores = torch.add(bias, scores, alpha=factor)
    elif cosine_scale is None:
        scores = scores * factor
    if mask is not None:
        scores.add_(mask)  # not to a view of them, which the older ONNX exporter would lose
    weights = torch.softmax(scores, -1, out=scores) if in_place else scores.softmax(-1)
    if dropout > 0.0:
        weights = F.dropout(weights, dropout, inplace=in_place)
    return torch.bmm(weights.to(v.dtype).view(-1, tokens, tokens), v)


def share_queries(q: Tensor, groups: int) -> Tensor:
    """One window of queries an image [B, Wh, Ww, heads, d] -> [B * G * heads, N, d], repeated for all its windows."""
    q = q.flatten(1, 2).transpose(1, 2).unsqueeze(1)
    return q.expand(-1, groups, -1, -1, -1).reshape(-1, q.shape[3], q.shape[4])


def arrange_all(
    q: Tensor, k: Tensor | None, v: Tensor | None, cut: Partition, padding: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Shifted and padded to whole tiles; a window of queries stays as it is."""
    if k is None or v is None:
        return arrange(q, cut, padding), None, None
    if q.shape == k.shape:
        q = arrange(q, cut, None)
    k_fill = None if padding is None else padding[: k.shape[3]]
    v_fill = None if padding is None else padding[k.shape[3] :]
    return q, arrange(k, cut, k_fill), arrange(v, cut, v_fill)


def arrange(x: Tensor, cut: Partition, fill: Tensor | None) -> Tensor:
    """[B, H, W, channels], shifted and padded to whole tiles."""
    batch, height, width, channels = x.shape
    back = (-cut.shift[0], -cut.shift[1])
    shifted = cut.shift[0] > 0 or cut.shift[1] > 0
    if shifted and cut.pad_after_shift:
        x = x.roll(back, (1, 2))
    pad_h, pad_w = cut.padded[0] - height, cut.padded[1] - width
    if pad_h > 0 or pad_w > 0:
        if fill is None:
            x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))
        else:
            fill = fill.to(x.dtype)
            x = torch.cat([x, fill.expand(batch, height, pad_w, channels)], 2)
            x = torch.cat([x, fill.expand(batch, pad_h, width + pad_w, channels)], 1)
    if shifted and not cut.pad_after_shift:
        x = x.roll(back, (1, 2))
    return x


def arrange_back(x: Tensor, cut: Partition) -> Tensor:
    shifted = cut.shift[0] > 0 or cut.shift[1] > 0
    if shifted and not cut.pad_after_shift:
        x = x.roll(cut.shift, (1, 2))
    x = x[:, : cut.size[0], : cut.size[1]]
    if shifted and cut.pad_after_shift:
        x = x.roll(cut.shift, (1, 2))
    return x


def to_windows(x: Tensor, cut: Partition) -> Tensor:
    """[B, H, W, heads, d] of whole tiles -> [B * G * heads, N, d], contiguous."""
    (tiles_h, tiles_w), (window_h, window_w), (dilation_h, dilation_w) = cut.tiles, cut.window, cut.dilation
    heads, head_dim = x.shape[3], x.shape[4]
    # -1 images: the older ONNX exporter takes the number behind a padding for constant.
    x = x.view(-1, tiles_h, window_h, dilation_h, tiles_w, window_w, dilation_w, heads, head_dim)
    return x.permute(0, 1, 3, 4, 6, 7, 2, 5, 8).reshape(-1, window_h * window_w, head_dim)


def to_map(x: Tensor, cut: Partition, heads: int) -> Tensor:
    """[B * G * heads, N, d] -> [B, H, W, C]: the way back of `to_windows`."""
    (tiles_h, tiles_w), (dilation_h, dilation_w) = cut.tiles, cut.dilation
    x = x.view(-1, tiles_h, dilation_h, tiles_w, dilation_w, heads, cut.window[0], cut.window[1], x.shape[-1])
    x = x.permute(0, 1, 6, 2, 3, 7, 4, 5, 8)
    return x.reshape(-1, cut.padded[0], cut.padded[1], heads * x.shape[-1])
