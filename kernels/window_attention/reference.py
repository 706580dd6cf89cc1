"""Window attention in plain PyTorch: the definition of the op, and what runs where its kernel cannot."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnzoo.kernels._dispatch import is_plain_eager

from .eager_cpu import by_parts
from .windows import (
    Call,
    arrange_all,
    arrange_back,
    attend,
    attention_mask,
    dense_bias,
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
    call: Call,
) -> Tensor:
    """The op on arguments that `window_attention` has checked and resolved to a call."""
    if bias is not None:
        bias = dense_bias(bias, bias_index).to(q.dtype)
    if torch.jit.is_scripting():
        mask = attention_mask(call.cut, padding is None, q.dtype, q.device)
        return _whole(q, k, v, bias, mask, cosine_scale, padding, call)
    else:
        return _unscripted(q, k, v, bias, cosine_scale, padding, call)


def _unscripted(*arguments: Any) -> Tensor:
    q, k, v, bias, cosine_scale, padding, call = arguments
    eager = is_plain_eager(q, k, v)
    make_mask: Callable[..., Tensor | None] = _cached_mask if eager else attention_mask
    mask = make_mask(call.cut, padding is None, q.dtype, q.device)
    by: Callable[..., Tensor] = by_parts if eager and q.device.type == 'cpu' and q.shape[0] > 0 else _whole
    return by(q, k, v, bias, mask, cosine_scale, padding, call)


def _whole(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    cosine_scale: Tensor | None,
    padding: Tensor | None,
    call: Call,
) -> Tensor:
    """In so many words: shift and pad, take the windows, attend, put them back."""
    cut, num_heads = call.cut, call.num_heads
    q, k, v = arrange_all(q, k, v, cut, padding)
    q, k, v = split_heads(q, k, v, num_heads, call.qkv_layout)
    if q.shape == k.shape:
        q = to_windows(q, cut)
    else:
        q = share_queries(q, cut.groups)
    out = attend(
        q, to_windows(k, cut), to_windows(v, cut), num_heads, bias, mask, call.scale, cosine_scale, call.dropout
    )
    return arrange_back(to_map(out, cut, num_heads), cut)
