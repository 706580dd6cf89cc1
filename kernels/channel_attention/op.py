"""`channel_attention`: validation and dispatch."""

import torch
from torch import Tensor

from attnzoo.kernels._checks import check_map
from attnzoo.kernels._fx import fx_leaf

from .reference import channel_attention_reference


@fx_leaf
def channel_attention(qkv: Tensor, num_heads: int, scale: float | None = None) -> Tensor:
    """Attention within groups of channels, in which every channel is a token that holds a whole map.

    For each group (head): A = softmax(scale * k^T v) over the channels of v, and the result is q A^T. This is the
    channel attention of DaViT (2204.03645) as published, where what is named q takes the part of the values. Its
    cost grows linearly with the number of positions.

    Legend: B images, H x W map, C = num_heads * d channels.

    Args:
        qkv: Packed q, k and v, [B, H, W, 3C]: all heads of q, then of k, then of v.
        num_heads: Groups of channels.
        scale: Factor of k^T v; default d ** -0.5.

    Returns:
        [B, H, W, C]. The input gets its gradient.

    Raises:
        ValueError: An argument has the wrong shape, dtype or value; the message names it.
    """
    if not torch.jit.is_scripting():
        _check(qkv, num_heads)
    if scale is None:
        scale = (qkv.shape[3] // (3 * num_heads)) ** -0.5
    return channel_attention_reference(qkv, num_heads, scale)


def _check(qkv: Tensor, num_heads: int) -> None:
    check_map('qkv', qkv, holds='3 * channels')
    if num_heads < 1 or qkv.shape[3] == 0 or qkv.shape[3] % (3 * num_heads):
        raise ValueError(
            f'num_heads: expected 3 * num_heads to divide the {qkv.shape[3]} channels of qkv, got {num_heads}'
        )
