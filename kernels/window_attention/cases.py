"""The published shapes of window attention."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from attnzoo.kernels._registry import Case

from .op import window_attention
from .windows import (
    Partition,
    arrange,
    arrange_back,
    attention_mask,
    dense_bias,
    make_partition,
    split_heads,
    to_map,
    to_windows,
)


def _inputs(
    batch: int,
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    size: tuple[int, int],
    heads: int,
    head_dim: int,
    window: tuple[int, int],
    cosine: bool = False,
    indexed: bool = True,
    filled: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    def new(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype, requires_grad=True)

    tokens, rows = window[0] * window[1], (2 * window[0] - 1) * (2 * window[1] - 1)
    return {
        'q': new(batch, *size, 3 * heads * head_dim),
        'bias': new(rows, heads) if indexed else new(heads, tokens, tokens),
        'bias_index': torch.randint(rows, (tokens, tokens), device=device) if indexed else None,
        'cosine_scale': new(heads) if cosine else None,
        'padding': new(3 * heads * head_dim) if filled else None,
        'num_heads': heads,
        'window': window,
        **settings,
    }


def _windows(
    inputs: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, float | None, Partition]:
    """What users of SDPA or FlexAttention make first: rolled, padded and partitioned copies, the bias and the mask."""
    size, window = tuple(inputs['q'].shape[1:3]), inputs['window']
    grid = inputs.get('partition') == 'grid'
    dilation = tuple(-(-s // w) for s, w in zip(size, window, strict=True)) if grid else (1, 1)
    cut = make_partition(size, window, dilation, inputs.get('shift', (0, 0)), False)
    packed = arrange(inputs['q'], cut, inputs['padding'])
    q, k, v = (
        to_windows(x, cut).view(-1, inputs['num_heads'], window[0] * window[1], x.shape[-1])
        for x in split_heads(packed, None, None, inputs['num_heads'], inputs.get('qkv_layout', '3hd'))
    )
    scale = None
    if inputs['cosine_scale'] is not None:
        q = F.normalize(q, dim=-1) * inputs['cosine_scale'].view(-1, 1, 1)
        k, scale = F.normalize(k, dim=-1), 1.0
    bias = dense_bias(inputs['bias'], inputs['bias_index'])
    return q, k, v, bias, attention_mask(cut, inputs['padding'] is None, q.dtype, q.device), scale, cut


def sdpa(**inputs: Any) -> Tensor:
    """torch's scaled_dot_product_attention, with the bias and the mask added up for every window."""
    q, k, v, bias, mask, scale, cut = _windows(inputs)
    added = bias if mask is None else (bias + mask).repeat(q.shape[0] // cut.groups, 1, 1, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=scale)
    return arrange_back(to_map(out, cut, q.shape[1]), cut)


def flex(**inputs: Any) -> Tensor:
    """torch's FlexAttention, compiled; Inductor does not take the partition into the same graph."""
    q, k, v, bias, mask, scale, cut = _windows(inputs)

    def modify(score: Tensor, window: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        score = score + bias[head, query, key]
        return score if mask is None else score + mask[window % cut.groups, 0, query, key]

    out = torch.compile(flex_attention)(q, k, v, score_mod=modify, scale=scale)
    return arrange_back(to_map(out, cut, q.shape[1]), cut)


def _floor_bytes(inputs: dict[str, Any]) -> tuple[int, int]:
    """Forward reads q, k, v and writes the map; backward reads q, k, v, the map and its gradient and writes three."""
    unit = inputs['q'].numel() // 3 * inputs['q'].element_size()
    return 4 * unit, 8 * unit


def _case(
    name: str, size: int, heads: int, head_dim: int, window: int, all_dtypes: bool = False, **settings: Any
) -> Case:
    shape = f'{size}x{size}x{heads * head_dim} h{heads} d{head_dim} w{window}'
    details = [key for key, value in settings.items() if value]
    return Case(
        name,
        ' '.join([shape, *details]),
        window_attention,
        partial(_inputs, size=(size, size), heads=heads, head_dim=head_dim, window=(window, window), **settings),
        _floor_bytes,
        rivals={'SDPA': sdpa, 'FlexAttention': flex},
        all_dtypes=all_dtypes,
    )


CASES = (
    _case('Swin-T stage 1', 56, 3, 32, 7),
    _case('Swin-T stage 1, shifted', 56, 3, 32, 7, shift=(3, 3), all_dtypes=True),
    _case('24-channel heads', 56, 3, 24, 7, shift=(3, 3)),
    _case('64-channel heads', 28, 3, 64, 7, shift=(3, 3)),
    _case('Swin-T stage 3', 14, 12, 32, 7, shift=(3, 3)),
    _case('DaViT-T stage 1 on 61 x 61', 61, 3, 32, 7, filled=True),
    _case('SwinV2-T stage 1 at 256', 64, 3, 32, 8, shift=(4, 4), cosine=True),
    _case('Swin-B stage 1 at 384', 96, 4, 32, 12, shift=(6, 6)),
    _case('24-channel heads, 144 tokens', 48, 3, 24, 12, shift=(6, 6)),
    _case('64-channel heads, 144 tokens', 48, 3, 64, 12, shift=(6, 6)),
    _case('CrossFormer++-S stage 3', 14, 8, 32, 14, indexed=False),
    _case('MaxViT-T stage 1 grid at 512', 128, 2, 32, 16, partition='grid', qkv_layout='h3d', indexed=False),
    _case('SwinV2-T stage 1 at 256, window 16', 64, 3, 32, 16, shift=(8, 8), cosine=True),
    _case('64-channel heads, 256 tokens', 64, 2, 64, 16, shift=(8, 8), cosine=True),
    _case('24-channel heads, 64 tokens', 64, 3, 24, 8, shift=(4, 4)),
    _case('24-channel heads, 196 tokens', 56, 3, 24, 14, shift=(7, 7)),
    _case('24-channel heads, 256 tokens', 64, 3, 24, 16, shift=(8, 8)),
    _case('64-channel heads, 64 tokens', 32, 3, 64, 8, shift=(4, 4)),
    _case('64-channel heads, 196 tokens', 28, 3, 64, 14, shift=(7, 7)),
)
