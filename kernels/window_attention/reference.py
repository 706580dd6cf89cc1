"""Window attention in plain PyTorch: the definition of the op, and what runs where its kernel cannot.

Legend: B images, H x W map, C = heads * d channels, window of Wh x Ww = N tokens, G windows in an image's padded map.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT_MASK = (
    -100.0
)  # added, not excluded: large logits (SwinV2's reach 116) see across the seam, as in the published nets
PADDING_MASK = -3e4  # excludes a key in every dtype (its exp is 0), and a window of nothing but padding stays finite
CHUNK_BYTES = 4 << 20  # of q, k and v: eager CPU inference takes so many images at a time, and stays in the caches


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


def window_attention_reference(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    bias: Tensor | None,
    bias_index: Tensor | None,
    cosine_scale: Tensor | None,
    padding: Tensor | None,
    num_heads: int,
    window: tuple[int, int],
    dilation: tuple[int, int],
    shift: tuple[int, int],
    pad_after_shift: bool,
    qkv_layout: str,
    scale: float | None,
) -> Tensor:
    """The op on arguments that `window_attention` has checked, with the partition resolved to a dilation."""
    q, k, v = split_heads(q, k, v, num_heads, qkv_layout)
    batch, height, width, _, head_dim = k.shape
    cut = make_partition((height, width), window, dilation, shift, pad_after_shift)
    k_padding, v_padding = split_padding(padding, num_heads, head_dim, qkv_layout)
    mask = attention_mask(cut, padding is None, q)
    if bias is not None:
        bias = dense_bias(bias, bias_index).to(q.dtype)
    factor = head_dim**-0.5 if scale is None else scale

    chunk = batch
    if not torch.jit.is_scripting():
        chunk = _images_at_a_time(q, k, v, bias, cosine_scale, padding)
    if chunk >= batch:
        return _attend(q, k, v, cut, bias, mask, factor, cosine_scale, k_padding, v_padding)
    out = torch.empty((batch, height, width, num_heads * head_dim), dtype=q.dtype, device=q.device)
    for start in range(0, batch, chunk):
        part = slice(start, start + chunk)
        out[part] = _attend(q[part], k[part], v[part], cut, bias, mask, factor, cosine_scale, k_padding, v_padding)
    return out


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


def split_padding(
    padding: Tensor | None, num_heads: int, head_dim: int, qkv_layout: str
) -> tuple[Tensor | None, Tensor | None]:
    """What k and v are at padded positions, [heads, d] each; q's share, if there is one, has no effect on the map."""
    if padding is None:
        return None, None
    if padding.numel() == 2 * num_heads * head_dim:
        k, v = padding.view(2, num_heads, head_dim).unbind(0)
    elif qkv_layout == '3hd':
        _, k, v = padding.view(3, num_heads, head_dim).unbind(0)
    else:
        _, k, v = padding.view(num_heads, 3, head_dim).unbind(1)
    return k, v


def dense_bias(bias: Tensor, bias_index: Tensor | None) -> Tensor:
    """[heads, N, N]: the bias itself, or the row of a table [T, heads] that each pair of tokens [N, N] takes."""
    if bias_index is None:
        return bias
    return bias[bias_index.flatten()].unflatten(0, bias_index.shape).permute(2, 0, 1)


def attention_mask(
    cut: Partition,
    mask_padding: bool,
    like: Tensor,
    across_seam: float = SHIFT_MASK,  # TorchScript reads a constant of the module only as a default
    padded_key: float = PADDING_MASK,
) -> Tensor | None:
    """What is added to the scores of an image's windows, [G, N, N], or None where nothing is."""
    tokens = cut.window[0] * cut.window[1]
    mask: Tensor | None = None
    if cut.shift[0] > 0 or cut.shift[1] > 0:
        region = 3 * _per_window(_region(cut, 0, like.device), cut, 0) + _per_window(
            _region(cut, 1, like.device), cut, 1
        )
        region = region.reshape(cut.groups, tokens)
        across = region.unsqueeze(1) != region.unsqueeze(2)
        mask = torch.zeros(across.shape, dtype=like.dtype, device=like.device).masked_fill(across, across_seam)
    if mask_padding and cut.padded != cut.size:
        outside_h = _per_window(_is_padding(cut, 0, like.device), cut, 0)
        outside_w = _per_window(_is_padding(cut, 1, like.device), cut, 1)
        outside = (outside_h | outside_w).reshape(cut.groups, 1, tokens)
        if mask is None:
            mask = torch.zeros((cut.groups, tokens, tokens), dtype=like.dtype, device=like.device)
        mask = mask.masked_fill(outside, padded_key)
    return mask


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


def _images_at_a_time(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, cosine_scale: Tensor | None, padding: Tensor | None
) -> int:
    """All of them, except for eager inference on a CPU: there, fresh memory costs more than the arithmetic."""
    batch = k.shape[0]
    training = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (q, k, v, bias, cosine_scale, padding)
    )
    if training or k.device.type != 'cpu' or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return batch
    return max(1, CHUNK_BYTES * batch // max(1, 3 * k.numel() * k.element_size()))


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cut: Partition,
    bias: Tensor | None,
    mask: Tensor | None,
    scale: float,
    cosine_scale: Tensor | None,
    k_padding: Tensor | None,
    v_padding: Tensor | None,
) -> Tensor:
    batch, _, _, heads, head_dim = k.shape
    tokens = cut.window[0] * cut.window[1]
    if q.shape == k.shape:
        q = to_windows(q, cut, None)
    else:  # one window of queries an image, which all of its windows share
        q = q.permute(0, 3, 1, 2, 4).reshape(batch, 1, heads, tokens, head_dim)
        q = q.expand(-1, cut.groups, -1, -1, -1).reshape(-1, tokens, head_dim)
    k, v = to_windows(k, cut, k_padding), to_windows(v, cut, v_padding)

    # Products of contiguous batches: faster than SDPA on a CPU at 49 tokens, and they give the bias its gradient.
    if cosine_scale is not None:
        q, k = _normalize(q), _normalize(k)
    scores = torch.bmm(q, k.transpose(1, 2)).view(-1, heads, tokens, tokens)
    if cosine_scale is not None:
        scores = scores * cosine_scale.to(scores.dtype).view(heads, 1, 1)
        scale = 1.0
    if bias is not None:
        scores = torch.add(bias, scores, alpha=scale)
    elif cosine_scale is None:
        scores = scores * scale
    if mask is not None:
        scores = scores.view(batch, cut.groups, heads, tokens, tokens) + mask.unsqueeze(1)
    out = torch.bmm(scores.softmax(-1).to(v.dtype).view(-1, tokens, tokens), v)
    return to_map(out, cut, batch, heads)


def _normalize(x: Tensor) -> Tensor:
    if x.element_size() > 2:
        return F.normalize(x, dim=-1)
    return F.normalize(x.float(), dim=-1).to(x.dtype)  # the floor of the norm is zero in float16: padding would be NaN


def to_windows(x: Tensor, cut: Partition, padding: Tensor | None) -> Tensor:
    """[B, H, W, heads, d] -> [B * G * heads, N, d], contiguous."""
    batch, height, width, heads, head_dim = x.shape
    back = (-cut.shift[0], -cut.shift[1])
    shifted = cut.shift[0] > 0 or cut.shift[1] > 0
    if shifted and cut.pad_after_shift:
        x = x.roll(back, (1, 2))
    pad_h, pad_w = cut.padded[0] - height, cut.padded[1] - width
    if pad_h > 0 or pad_w > 0:
        if padding is None:
            x = F.pad(x, (0, 0, 0, 0, 0, pad_w, 0, pad_h))
        else:
            padding = padding.to(x.dtype)
            x = torch.cat([x, padding.expand(batch, height, pad_w, heads, head_dim)], 2)
            x = torch.cat([x, padding.expand(batch, pad_h, width + pad_w, heads, head_dim)], 1)
    if shifted and not cut.pad_after_shift:
        x = x.roll(back, (1, 2))
    x = x.unflatten(2, (cut.tiles[1], cut.window[1], cut.dilation[1]))
    x = x.unflatten(1, (cut.tiles[0], cut.window[0], cut.dilation[0]))
    return x.permute(0, 1, 3, 4, 6, 7, 2, 5, 8).reshape(-1, cut.window[0] * cut.window[1], head_dim)


def to_map(x: Tensor, cut: Partition, batch: int, heads: int) -> Tensor:
    """[B * G * heads, N, d] -> [B, H, W, C]: the way back."""
    (tiles_h, tiles_w), (dilation_h, dilation_w) = cut.tiles, cut.dilation
    x = x.view(batch, tiles_h, dilation_h, tiles_w, dilation_w, heads, cut.window[0], cut.window[1], x.shape[-1])
    x = x.permute(0, 1, 6, 2, 3, 7, 4, 5, 8).reshape(batch, cut.padded[0], cut.padded[1], heads * x.shape[-1])
    shifted = cut.shift[0] > 0 or cut.shift[1] > 0
    if shifted and not cut.pad_after_shift:
        x = x.roll(cut.shift, (1, 2))
    x = x[:, : cut.size[0], : cut.size[1]]
    if shifted and cut.pad_after_shift:
        x = x.roll(cut.shift, (1, 2))
    return x
