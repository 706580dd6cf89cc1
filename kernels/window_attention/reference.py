"""Window attention in plain PyTorch: the definition of the op, and what runs where its kernel cannot."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnzoo.kernels._dispatch import is_plain_eager

from .eager_cpu import by_parts
from .windows import (
    Partition,
    arrange_all,
    arrange_back,
    attend,
    attention_mask,
    dense_bias,
    make_partition,
    share_queries,
    split_heads,
    to_map,
    to_windows,
)

_cached_mask = functools.lru_cache(maxsize=8)(attention_mask)  # a network has one for each stage


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
    dropout: float = 0.0,
) -> Tensor:
    """The op on arguments that `window_attention` has checked, with the partition resolved to a dilation."""
    height, width = (q if k is None else k).shape[1:3]
    cut = make_partition((height, width), window, dilation, shift, pad_after_shift)
    if bias is not None:
        bias = dense_bias(bias, bias_index).to(q.dtype)
    if torch.jit.is_scripting():
        mask = attention_mask(cut, padding is None, q.dtype, q.device)
        return _whole(q, k, v, num_heads, qkv_layout, cut, bias, mask, scale, cosine_scale, padding, dropout)
    else:
        return _unscripted(q, k, v, num_heads, qkv_layout, cut, bias, scale, cosine_scale, padding, dropout)


def _unscripted(*arguments: Any) -> Tensor:
    q, cut, padding = arguments[0], arguments[5], arguments[-2]
    eager = is_plain_eager(*arguments[:3])
    make_mask: Callable[..., Tensor | None] = _cached_mask if eager else attention_mask
    mask = make_mask(cut, padding is None, q.dtype, q.device)
    by: Callable[..., Tensor] = by_parts if eager and q.device.type == 'cpu' and q.shape[0] > 0 else _whole
    return by(*arguments[:7], mask, *arguments[7:])


def _whole(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    num_heads: int,
    qkv_layout: str,
    cut: Partition,
    bias: Tensor | None,
    mask: Tensor | None,
    scale: float | None,
    cosine_scale: Tensor | None,
    padding: Tensor | None,
    dropout: float,
) -> Tensor:
    """In so many words: shift and pad, take the windows, attend, put them back."""
    q, k, v = arrange_all(q, k, v, cut, padding)
    q, k, v = split_heads(q, k, v, num_heads, qkv_layout)
    if q.shape == k.shape:
        q = to_windows(q, cut)
    else:
        q = share_queries(q, cut.groups)
    out = attend(q, to_windows(k, cut), to_windows(v, cut), num_heads, bias, mask, scale, cosine_scale, dropout)
    return arrange_back(to_map(out, cut, num_heads), cut)
