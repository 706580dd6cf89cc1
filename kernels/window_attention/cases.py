"""The calls of window attention that the blocks make, and others at published shapes."""

import functools
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
    table: str = 'table',
    cosine: bool = False,
    filled: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    def new(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype, requires_grad=True)

    tokens, rows = window[0] * window[1], (2 * window[0] - 1) * (2 * window[1] - 1)
    inputs = {'q': new(batch, *size, 3 * heads * head_dim), 'num_heads': heads, 'window': window, **settings}
    if table:
        turned = torch.randn(heads, rows, device=device, dtype=dtype).t()  # as MaxViT's blocks have it
        inputs['bias'] = new(rows, heads) if table == 'table' else turned.requires_grad_()
        inputs['bias_index'] = torch.randint(rows, (tokens, tokens), device=device)
    if cosine:
        inputs['cosine_scale'] = new(heads)
    if filled:
        inputs['padding'] = new(3 * heads * head_dim)
    return inputs


def _windows(
    inputs: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, float | None, Partition]:
    """What users of SDPA or FlexAttention make first: rolled, padded and partitioned copies, the bias and the mask."""
    size, window = tuple(inputs['q'].shape[1:3]), inputs['window']
    grid = inputs.get('partition') == 'grid'
    dilation = tuple(-(-s // w) for s, w in zip(size, window, strict=True)) if grid else inputs.get('dilation', (1, 1))
    cut = make_partition(size, window, dilation, inputs.get('shift', (0, 0)), False)
    padding = inputs.get('padding')
    packed = arrange(inputs['q'], cut, padding)
    q, k, v = (
        to_windows(x, cut).view(-1, inputs['num_heads'], window[0] * window[1], x.shape[-1])
        for x in split_heads(packed, None, None, inputs['num_heads'], inputs.get('qkv_layout', '3hd'))
    )
    scale = None
    if 'cosine_scale' in inputs:
        q = F.normalize(q, dim=-1) * inputs['cosine_scale'].view(-1, 1, 1)
        k, scale = F.normalize(k, dim=-1), 1.0
    bias = dense_bias(inputs['bias'], inputs['bias_index']) if 'bias' in inputs else None
    return q, k, v, bias, attention_mask(cut, padding is None, q.dtype, q.device), scale, cut


def sdpa(**inputs: Any) -> Tensor:
    """torch's scaled_dot_product_attention, with the bias and the mask added up for every window."""
    q, k, v, bias, mask, scale, cut = _windows(inputs)
    added = bias
    if mask is not None:
        added = (mask if bias is None else bias + mask).repeat(q.shape[0] // cut.groups, 1, 1, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=scale)
    return arrange_back(to_map(out, cut, q.shape[1]), cut)


_compiled = functools.cache(torch.compile)


def compiled_sdpa(**inputs: Any) -> Tensor:
    """The same, compiled with the copies around it."""
    return _compiled(sdpa)(**inputs)


def flex(**inputs: Any) -> Tensor:
    """torch's FlexAttention, compiled; Inductor does not take the partition into the same graph."""
    q, k, v, bias, mask, scale, cut = _windows(inputs)

    def modify(score: Tensor, window: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        score = score if bias is None else score + bias[head, query, key]
        return score if mask is None else score + mask[window % cut.groups, 0, query, key]

    out = _compiled(flex_attention)(q, k, v, score_mod=modify, scale=scale)
    return arrange_back(to_map(out, cut, q.shape[1]), cut)


def _floor_bytes(inputs: dict[str, Any]) -> tuple[int, int]:
    """Forward reads q, k, v and writes the map; backward reads q, k, v and the map's gradient and writes three.

    Windows of more than 64 tokens, whose scores a program does not hold at a time, read the map in backward too.
    """
    unit = inputs['q'].numel() // 3 * inputs['q'].element_size()
    return 4 * unit, (7 if inputs['window'][0] * inputs['window'][1] <= 64 else 8) * unit


def _case(
    name: str,
    size: int,
    heads: int,
    window: int,
    head_dim: int = 32,
    all_dtypes: bool = False,
    limits: tuple[float, float] | None = None,
    **settings: Any,
) -> Case:
    shape = f'{size}x{size}x{heads * head_dim} h{heads} d{head_dim} w{window}'
    details = [key if value is True else str(value) for key, value in settings.items() if value]
    return Case(
        name,
        ' '.join([shape, *details]),
        window_attention,
        partial(_inputs, size=(size, size), heads=heads, head_dim=head_dim, window=(window, window), **settings),
        _floor_bytes,
        rivals={'SDPA': sdpa, 'compiled SDPA': compiled_sdpa, 'FlexAttention': flex},
        all_dtypes=all_dtypes,
        limits=limits,
    )


# The most that `issue_over_bytes` may be on sm_90 in bfloat16, forward and forward+backward.
LIMITS_ONE_TILE = (0.65, 0.70)
LIMITS_144_TOKENS = (1.2, 2.5)
LIMITS_256_TOKENS = (1.8, 3.5)  # of 196 too


def _of_24_channels(limits: tuple[float, float]) -> tuple[float, float]:
    """Heads of 24 channels are computed as 32, so they issue as much for three quarters of the bytes."""
    return limits[0] * 4 / 3, limits[1] * 4 / 3


_swin = partial(_case, filled=True, limits=LIMITS_ONE_TILE)
_davit = partial(_swin, table='')
_maxvit = partial(_case, table='turned table', limits=LIMITS_ONE_TILE)
_grid = partial(_maxvit, partition='grid')

# What the blocks call; a test compares (tests/blocks/test_kernel_cases.py).
BLOCK_CASES = (
    _swin('Swin-T stage 1', 56, 3, 7),
    _swin('Swin-T stage 1, shifted', 56, 3, 7, shift=(3, 3), all_dtypes=True),
    _swin('Swin-T stage 2', 28, 6, 7),
    _swin('Swin-T stage 2, shifted', 28, 6, 7, shift=(3, 3)),
    _swin('Swin-T stage 3', 14, 12, 7),
    _swin('Swin-T stage 3, shifted', 14, 12, 7, shift=(3, 3)),
    _swin('Swin-T stage 4', 7, 24, 7),
    _swin('Swin-B stage 1 at 384', 96, 4, 12, limits=LIMITS_144_TOKENS),
    _swin('Swin-B stage 1 at 384, shifted', 96, 4, 12, shift=(6, 6), limits=LIMITS_144_TOKENS),
    _davit('DaViT-T stage 1', 56, 3, 7),
    _davit('DaViT-T stage 3', 14, 12, 7),
    _davit('DaViT-T stage 1 on 61 x 61', 61, 3, 7),
    _maxvit('MaxViT-T stage 1, block', 56, 2, 7),
    _grid('MaxViT-T stage 1, grid', 56, 2, 7),
    _grid('MaxViT-T stage 3, grid', 14, 8, 7),
    _maxvit('MaxViT-T stage 1 at 512, block', 128, 2, 16, limits=LIMITS_256_TOKENS),
    _grid('MaxViT-T stage 1 at 512, grid', 128, 2, 16, limits=LIMITS_256_TOKENS),
    _case('CrossFormer-S stage 1, short distance', 56, 3, 7),
    _case('CrossFormer-S stage 1, long distance', 56, 3, 7, dilation=(8, 8)),
    _case('CrossFormer++-S stage 3', 14, 8, 14, limits=LIMITS_256_TOKENS),
)
# No block calls these yet, or they are there for their head dims.
OTHER_CASES = (
    _case('SwinV2-T stage 1 at 256', 64, 3, 8, shift=(4, 4), cosine=True),
    _case('SwinV2-T stage 1 at 256, window 16', 64, 3, 16, shift=(8, 8), cosine=True, limits=LIMITS_256_TOKENS),
    _case('24-channel heads', 56, 3, 7, 24, shift=(3, 3)),
    _case('24-channel heads, 64 tokens', 64, 3, 8, 24, shift=(4, 4)),
    _case('24-channel heads, 144 tokens', 48, 3, 12, 24, shift=(6, 6), limits=_of_24_channels(LIMITS_144_TOKENS)),
    _case('24-channel heads, 196 tokens', 56, 3, 14, 24, shift=(7, 7), limits=_of_24_channels(LIMITS_256_TOKENS)),
    _case('24-channel heads, 256 tokens', 64, 3, 16, 24, shift=(8, 8), limits=LIMITS_256_TOKENS),
    _case('64-channel heads', 28, 3, 7, 64, shift=(3, 3)),
    _case('64-channel heads, 64 tokens', 32, 3, 8, 64, shift=(4, 4)),
    _case('64-channel heads, 144 tokens', 48, 3, 12, 64, shift=(6, 6), limits=LIMITS_144_TOKENS),
    _case('64-channel heads, 196 tokens', 28, 3, 14, 64, shift=(7, 7), limits=LIMITS_256_TOKENS),
    _case('64-channel heads, 256 tokens', 64, 2, 16, 64, shift=(8, 8), cosine=True, limits=LIMITS_256_TOKENS),
)
CASES = BLOCK_CASES + OTHER_CASES
