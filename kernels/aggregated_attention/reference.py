"""Aggregated attention in plain PyTorch: the definition of the op, and what runs where a kernel does not.

Legend: B images, H x W map, N heads of d channels, o one of the neighbours of a position, P positions of a pooled map.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from attnzoo.kernels._cpu import by_hand, runs_by_hand
from attnzoo.kernels._math import normalize

from .eager_cpu import backward, forward
from .neighbours import beyond_border, count_keys


def aggregated_attention_reference(
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
    dropout: float,
) -> Tensor:
    """The op on arguments that `aggregated_attention` has checked."""
    if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript leaves out a branch by this test alone)
        if dropout == 0.0 and runs_by_hand(q, kv, pool_kv, pool_bias):
            return by_hand(
                forward, backward, _plain,
                q, kv, pool_kv, temperature, query_embedding, local_bias, pool_bias, tokens, token_bias, num_heads,
                window,
            )  # fmt: skip
    return _plain(
        q, kv, pool_kv, temperature, query_embedding, local_bias, pool_bias, tokens, token_bias, num_heads, window,
        dropout,
    )  # fmt: skip


def _plain(
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
    dropout: float = 0.0,
) -> Tensor:
    height, width = q.shape[1], q.shape[2]
    k, v = kv.chunk(2, -1)
    pool_k, pool_v = pool_kv.chunk(2, -1)
    unit_q = normalize(_heads(q, num_heads), 2)  # [B, N, d, H * W]
    scale = F.softplus(temperature) * count_keys(height, width, window, pool_bias.shape[2], q).flatten().log()
    scaled_q = ((unit_q + query_embedding.transpose(1, 2)) * scale).to(q.dtype)

    unit_k = normalize(_heads(k, num_heads), 2)
    scores = [(scaled_q * under).sum(2) for under in _neighbours(unit_k, height, width, window)]
    local = torch.stack(scores, 2) + local_bias.unsqueeze(2)
    local = local.masked_fill(beyond_border(height, width, window, q.device).flatten(1), float('-inf'))
    pooled = normalize(_heads(pool_k, num_heads), 2).transpose(2, 3) @ scaled_q + pool_bias.transpose(1, 2)

    weights = torch.cat([local, pooled.to(local.dtype)], 2).softmax(2)
    if dropout > 0.0:
        weights = F.dropout(weights, dropout)
    local, pooled = weights.split([len(scores), pool_bias.shape[2]], 2)
    local = local + (tokens.transpose(1, 2).to(q.dtype) @ unit_q + token_bias.transpose(1, 2))
    out = _heads(pool_v, num_heads) @ pooled.to(q.dtype)
    for o, under in enumerate(_neighbours(_heads(v, num_heads), height, width, window)):
        out = out + local[:, :, o : o + 1] * under
    return out.to(q.dtype).flatten(1, 2).transpose(1, 2).unflatten(1, (height, width))


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """[B, H, W, C] -> [B, N, d, H * W]."""
    return x.flatten(1, 2).transpose(1, 2).unflatten(1, (num_heads, -1))


def _neighbours(x: Tensor, height: int, width: int, window: tuple[int, int]) -> list[Tensor]:
    """For each neighbour, the map under it: [B, N, d, H * W] with zeros off the map."""
    rows, columns = window[0] // 2, window[1] // 2
    x = F.pad(x.unflatten(3, (height, width)), [columns, columns, rows, rows])
    found: list[Tensor] = []
    for top in range(window[0]):
        for left in range(window[1]):
            found.append(x[..., top : top + height, left : left + width].flatten(3))
    return found
