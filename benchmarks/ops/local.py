"""Local and global attention with relative positions: neighborhood, halo and bottleneck attention.

The rivals are the form of neighborhood attention that gathers the keys and values of every query, and the arithmetic of
timm's modules.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from attnzoo.kernels import neighborhood_attention

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


CASES: dict[str, Callable[[int], Case]] = {
    'neighborhood_attention 7x7, NAT stage 1': lambda batch: neighborhood(batch, 56, 2, 7),
    'neighborhood_attention 7x7, NAT stage 2': lambda batch: neighborhood(batch, 28, 4, 7),
    'neighborhood_attention 7x7, NAT stage 3': lambda batch: neighborhood(batch, 14, 8, 7),
    'neighborhood_attention 7x7, dilation 2, 56 x 56': lambda batch: neighborhood(batch, 56, 2, 7, 2),
    'neighborhood_attention 7x7, dilation 8, 56 x 56': lambda batch: neighborhood(batch, 56, 2, 7, 8),
    'neighborhood_attention 3x3, 56 x 56': lambda batch: neighborhood(batch, 56, 2, 3),
    'neighborhood_attention 13x13, 56 x 56': lambda batch: neighborhood(batch, 56, 2, 13),
}

SMALL: dict[str, Callable[[], Case]] = {
    'neighborhood_attention': lambda: neighborhood(2, 9, 2, 3, head_dim=4),
    'neighborhood_attention, dilated': lambda: neighborhood(2, 9, 2, 3, 2, head_dim=4),
}
