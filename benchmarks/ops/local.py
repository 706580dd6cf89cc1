"""Local and global attention with relative positions: neighborhood, halo and bottleneck attention.

The rivals are the form of neighborhood attention that gathers the keys and values of every query, and the arithmetic of
timm's modules.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from attnzoo.kernels import halo_attention, neighborhood_attention

from .case import Case, parameters


def neighborhood(batch: int, size: int, heads: int, kernel: int, dilation: int = 1, head_dim: int = 32) -> Case:
    channels, keys = heads * head_dim, kernel * kernel

    def ours(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return neighborhood_attention(q, k, v, heads, (kernel, kernel), (dilation, dilation), bias)

    places = torch.arange(size) // dilation
    residues = torch.arange(size) % dilation
    first = torch.minimum((places - kernel // 2).clamp(min=0), (size - residues + dilation - 1) // dilation - kernel)
    near = first[:, None] + torch.arange(kernel)
    along = near * dilation + residues[:, None]  # the keys of each position of an axis
    offset = near - places[:, None] + kernel - 1
    positions = (along[:, None, :, None] * size + along[None, :, None, :]).flatten()

    def gather(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """All keys and values of all queries copied side by side, then attended to."""
        q, k, v = (x.flatten(1, 2).unflatten(2, (heads, head_dim)) for x in (q, k, v))
        k, v = (x[:, positions].unflatten(1, (size * size, keys)) for x in (k, v))
        scores = torch.einsum('bphd,bpkhd->bphk', q * head_dim**-0.5, k)
        of_keys = bias[:, offset[:, None, :, None], offset[None, :, None, :]].reshape(heads, -1, keys)
        scores = scores + of_keys.transpose(0, 1)
        out = torch.einsum('bphk,bpkhd->bphd', scores.softmax(-1).to(v.dtype), v)
        return out.reshape(batch, size, size, channels)

    maps = [torch.randn(batch, size, size, channels) for _ in range(3)]
    return Case(ours, gather, maps, parameters((heads, 2 * kernel - 1, 2 * kernel - 1)))


def relative_logits(q: Tensor, height_rel: Tensor, width_rel: Tensor, window: tuple[int, int]) -> Tensor:
    """timm's: distances become places by a detour over padded rows. q [B, rows, columns, d] -> [B, all, all keys]."""

    def along_rows(q: Tensor, rel: Tensor, length: int) -> Tensor:  # [B, rows, columns, keys]
        rows, columns, distances = q.shape[1], q.shape[2], rel.shape[0]
        x = (q @ rel.mT).reshape(-1, columns, distances)
        x = F.pad(F.pad(x, [0, 1]).flatten(1), [0, distances - columns]).reshape(-1, columns + 1, distances)
        return x[:, :columns, length - 1 :].reshape(-1, rows, columns, length)

    size = q.shape[1] * q.shape[2]
    by_column = along_rows(q, width_rel, window[1]).unsqueeze(3).expand(-1, -1, -1, window[0], -1)
    by_row = along_rows(q.transpose(1, 2), height_rel, window[0]).transpose(1, 2).unsqueeze(4)
    return (by_row.expand(-1, -1, -1, -1, window[1]) + by_column).reshape(-1, size, window[0] * window[1])


def halo(batch: int, size: int, heads: int, block: int, around: int, head_dim: int = 32, last: bool = False) -> Case:
    window, blocks = block + 2 * around, size // block

    def ours(q: Tensor, kv: Tensor, height_rel: Tensor, width_rel: Tensor) -> Tensor:
        q, kv = q.permute(0, 2, 3, 1), kv.permute(0, 2, 3, 1)
        out = halo_attention(q, kv, None, height_rel, width_rel, heads, (block, block), (around, around))
        return out.permute(0, 3, 1, 2)

    def timm(q: Tensor, kv: Tensor, height_rel: Tensor, width_rel: Tensor) -> Tensor:
        q = q.reshape(-1, head_dim, blocks, block, blocks, block).permute(0, 1, 3, 5, 2, 4)
        q = q.reshape(batch * heads, head_dim, -1, blocks**2).transpose(1, 3)
        kv = F.pad(kv, [around] * 4).unfold(2, window, block).unfold(3, window, block)
        kv = kv.reshape(batch * heads, 2 * head_dim, blocks**2, -1).permute(0, 2, 3, 1)
        k, v = kv.split(head_dim, dim=-1)
        positions = relative_logits(q.reshape(-1, block, block, head_dim), height_rel, width_rel, (window, window))
        scores = (q @ k.mT) * head_dim**-0.5 + positions.view(batch * heads, blocks**2, block**2, -1)
        out = (scores.softmax(-1) @ v).transpose(1, 3).reshape(-1, block, block, blocks, blocks)
        return out.permute(0, 3, 1, 4, 2).reshape(batch, heads * head_dim, size, size)

    form = torch.channels_last if last else torch.contiguous_format
    maps = [torch.randn(batch, n * heads * head_dim, size, size).to(memory_format=form) for n in (1, 2)]
    return Case(ours, timm, maps, parameters((2 * window - 1, head_dim), (2 * window - 1, head_dim)))


def bottleneck(batch: int, size: int, heads: int, head_dim: int = 32) -> Case:
    channels = heads * head_dim

    def ours(qkv: Tensor, height_rel: Tensor, width_rel: Tensor) -> Tensor:
        q, k, v = qkv.permute(0, 2, 3, 1).chunk(3, -1)
        out = halo_attention(q, k, v, height_rel, width_rel, heads, (size, size), (0, 0))
        return out.permute(0, 3, 1, 2)

    def timm(qkv: Tensor, height_rel: Tensor, width_rel: Tensor) -> Tensor:
        q, k, v = (x.reshape(batch * heads, head_dim, -1).mT for x in qkv.split(channels, dim=1))
        positions = relative_logits(q.reshape(-1, size, size, head_dim), height_rel, width_rel, (size, size))
        weights = ((q @ k.mT) * head_dim**-0.5 + positions).softmax(-1)
        return (weights @ v).mT.reshape(batch, channels, size, size)

    maps = [torch.randn(batch, 3 * channels, size, size)]
    return Case(ours, timm, maps, parameters((2 * size - 1, head_dim), (2 * size - 1, head_dim)))


CASES: dict[str, Callable[[int], Case]] = {
    'neighborhood_attention 7x7, NAT stage 1': lambda batch: neighborhood(batch, 56, 2, 7),
    'neighborhood_attention 7x7, NAT stage 2': lambda batch: neighborhood(batch, 28, 4, 7),
    'neighborhood_attention 7x7, NAT stage 3': lambda batch: neighborhood(batch, 14, 8, 7),
    'neighborhood_attention 7x7, dilation 2, 56 x 56': lambda batch: neighborhood(batch, 56, 2, 7, 2),
    'neighborhood_attention 7x7, dilation 8, 56 x 56': lambda batch: neighborhood(batch, 56, 2, 7, 8),
    'neighborhood_attention 3x3, 56 x 56': lambda batch: neighborhood(batch, 56, 2, 3),
    'neighborhood_attention 13x13, 56 x 56': lambda batch: neighborhood(batch, 56, 2, 13),
    'halo_attention 8/3, 32 x 32, 8 heads': lambda batch: halo(batch, 32, 8, 8, 3),
    'halo_attention 8/3, 32 x 32, 8 heads, channels_last': lambda batch: halo(batch, 32, 8, 8, 3, last=True),
    'halo_attention of all, 14 x 14, 4 heads': lambda batch: bottleneck(batch, 14, 4),
    'halo_attention of all, 32 x 32, 4 heads': lambda batch: bottleneck(batch, 32, 4),
}

SMALL: dict[str, Callable[[], Case]] = {
    'neighborhood_attention': lambda: neighborhood(2, 9, 2, 3, head_dim=4),
    'neighborhood_attention, dilated': lambda: neighborhood(2, 9, 2, 3, 2, head_dim=4),
    'halo_attention': lambda: halo(2, 8, 2, 4, 1, head_dim=4),
    'halo_attention of all': lambda: bottleneck(2, 5, 2, head_dim=4),
}
