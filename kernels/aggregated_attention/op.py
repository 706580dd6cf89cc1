"""`aggregated_attention`: validation and dispatch."""

import torch
from torch import Tensor

from attnzoo.kernels._checks import (
    check_devices,
    check_dropout,
    check_dtypes,
    check_heads,
    check_map,
    check_odd,
    check_shape,
)
from attnzoo.kernels._dispatch import cast_for_autocast
from attnzoo.kernels._fx import fx_leaf

from .reference import aggregated_attention_reference


@fx_leaf
def aggregated_attention(
    q: Tensor,
    kv: Tensor,
    pool_kv: Tensor,
    temperature: Tensor,
    query_embedding: Tensor,
    local_bias: Tensor,
    pool_bias: Tensor,
    tokens: Tensor,
    token_bias: Tensor,
    num_heads: int,
    window: tuple[int, int] = (3, 3),
    dropout: float = 0.0,
) -> Tensor:
    """Multi-head attention of each position to its neighbours and to all of a pooled map, under one softmax.

    The aggregated attention of TransNeXt (2311.17132). For each head, with q^ and k^ of length 1:

        scores  = softplus(temperature) * log(n) * (q^ + query_embedding) k^ + bias
        weights = softmax(scores), and on those of neighbours + q^ tokens + token_bias

    n is the number of keys that a position has: neighbours within the map, and the pooled map. Neighbours beyond the
    border have no weight and no value.

    Legend: B images, H x W map, h x w pooled map, N heads of d channels, C = N * d, window of Wh x Ww neighbours, row
    by row.

    Args:
        q: Queries, [B, H, W, C].
        kv: Keys, then values of the map, [B, H, W, 2C].
        pool_kv: Keys, then values of the pooled map, [B, h, w, 2C].
        temperature: [N, 1, 1].
        query_embedding: [N, 1, d].
        local_bias: Added to the scores of neighbours, [N, Wh * Ww].
        pool_bias: Added to the scores of the pooled map, [N, H * W, h * w].
        tokens: [N, d, Wh * Ww].
        token_bias: [N, 1, Wh * Ww].
        num_heads: Number of heads, N.
        window: Height and width of the neighbourhood, odd; its middle is the position itself.
        dropout: Rate at which attention weights are dropped; with it, training keeps all scores.

    Returns:
        [B, H, W, C], in q's dtype. All inputs get gradients.

    Raises:
        ValueError: An argument has the wrong shape, dtype, device or value; the message names it.
    """
    window = (window[0], window[1])  # it may come as a list
    if not torch.jit.is_scripting():
        _check(
            q, kv, pool_kv, temperature, query_embedding, local_bias, pool_bias, tokens, token_bias, num_heads, window
        )
        check_dropout(dropout)
        q, kv, pool_kv = cast_for_autocast(q, kv, pool_kv)
    return aggregated_attention_reference(
        q, kv, pool_kv, temperature, query_embedding, local_bias, pool_bias, tokens, token_bias, num_heads, window,
        dropout,
    )  # fmt: skip


def _check(
    q: Tensor,
    kv: Tensor,
    pool_kv: Tensor,
    temperature: Tensor,
    query_embedding: Tensor,
    local_bias: Tensor,
    pool_bias: Tensor,
    tokens: Tensor,
    token_bias: Tensor,
    num_heads: int,
    window: tuple[int, int],
) -> None:
    """Raises a ValueError that names the argument, what it wants and what it got."""
    for name, x in (('q', q), ('kv', kv), ('pool_kv', pool_kv)):
        check_map(name, x)
    check_dtypes({'q': q, 'kv': kv, 'pool_kv': pool_kv})
    batch, height, width, channels = q.shape
    check_heads('q', q, num_heads)
    if tuple(kv.shape) != (batch, height, width, 2 * channels):
        raise ValueError(
            f'kv: expected {(batch, height, width, 2 * channels)}, twice the channels of q, got {tuple(kv.shape)}'
        )
    if pool_kv.shape[0] != batch or pool_kv.shape[3] != 2 * channels:
        raise ValueError(
            f'pool_kv: expected [{batch}, height, width, {2 * channels}], twice the channels of q, '
            f'got {tuple(pool_kv.shape)}'
        )
    check_odd('window', window)
    head_dim, neighbours, pooled = channels // num_heads, window[0] * window[1], pool_kv.shape[1] * pool_kv.shape[2]
    expected = {
        'temperature': (temperature, (num_heads, 1, 1), 'num_heads, 1, 1'),
        'query_embedding': (query_embedding, (num_heads, 1, head_dim), 'num_heads, 1, head dim'),
        'local_bias': (local_bias, (num_heads, neighbours), 'num_heads, neighbours'),
        'pool_bias': (pool_bias, (num_heads, height * width, pooled), 'num_heads, positions, pooled positions'),
        'tokens': (tokens, (num_heads, head_dim, neighbours), 'num_heads, head dim, neighbours'),
        'token_bias': (token_bias, (num_heads, 1, neighbours), 'num_heads, 1, neighbours'),
    }
    for name, (x, shape, axes) in expected.items():
        check_shape(name, x, shape, axes)
    check_devices('q', q, {'kv': kv, 'pool_kv': pool_kv, **{name: x for name, (x, _, _) in expected.items()}})
