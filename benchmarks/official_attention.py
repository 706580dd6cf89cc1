"""Routed attention formulated as the authors' code has it: the rival of our own formulations.

K and V of every region are viewed once for each query region, and `torch.gather` copies those that the route names. Its
backward fills a gradient of the whole view: R times the size of K and V.
"""

import torch
from torch import Tensor


def routed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Tensor,
    num_heads: int,
    regions: tuple[int, int],
    scale: float,
    weights: Tensor | None = None,
    valid: tuple[int, int] | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """The signature of `attnzoo.kernels.routed_attention`, for hard routing without a mask or dropout."""
    assert weights is None and valid is None and dropout == 0.0
    B, H, W, C = q.shape
    ry, rx = regions
    tokens = H // ry * (W // rx)

    def split(x):
        return (
            x.reshape(B, ry, H // ry, rx, W // rx, x.shape[3]).transpose(2, 3).reshape(B, ry * rx, tokens, x.shape[3])
        )

    q, kv = split(q), torch.cat((split(k), split(v)), dim=-1)
    view = kv[:, None].expand(-1, ry * rx, -1, -1, -1)
    index = routes[:, :, :, None, None].expand(-1, -1, -1, tokens, kv.shape[3])
    k, v = torch.gather(view, 2, index).flatten(2, 3).split((C, kv.shape[3] - C), dim=-1)
    q, k, v = (x.unflatten(3, (num_heads, -1)).transpose(2, 3) for x in (q, k, v))
    out = ((q * scale) @ k.transpose(-2, -1)).softmax(-1) @ v
    out = out.transpose(2, 3).reshape(B, ry, rx, H // ry, W // rx, -1)
    return out.transpose(2, 3).reshape(B, H, W, -1)
