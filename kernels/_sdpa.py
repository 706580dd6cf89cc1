"""Attention of all queries to all keys by PyTorch's SDPA, which lacks some derivatives."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ._autograd import gradients_by_autograd, wants_autograd
from ._dispatch import is_plain_eager, is_transformed


def full_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Multi-head attention of all queries to all keys: softmax(scale * q k^T + mask) v for each head.

    PyTorch's `scaled_dot_product_attention`, and what its fused forms refuse: derivatives of derivatives, forward-mode
    derivatives and `vmap`.

    Legend: B batch, N heads, T queries, S keys, D channels of a head.

    Args:
        q: Queries, [B, N, T, D].
        k: Keys, [B, N, S, D].
        v: Values, [B, N, S, Dv].
        mask: Added to the scores, [B, N, T, S] or what broadcasts to it.
        scale: Factor of the scores, D ** -0.5 when None.
        dropout: Rate at which attention weights are dropped.

    Returns:
        [B, N, T, Dv].
    """
    if torch.jit.is_scripting():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
    else:
        return _unscripted(q, k, v, mask, scale, dropout)


def _unscripted(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, dropout: float) -> Tensor:
    if is_transformed():
        return _by_products(q, k, v, mask, scale, dropout)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
    # Dropped weights could not be computed again.
    if out.requires_grad and dropout == 0.0 and is_plain_eager(q, k, v, mask):
        out = _WithSecondDerivatives.apply(out, q, k, v, mask, scale)
    return out


def _by_products(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, dropout: float = 0.0
) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)


class _WithSecondDerivatives(torch.autograd.Function):
    """The output of SDPA as it is. Its gradient goes on to SDPA, or past it where that could not take it."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, *arguments: Any) -> Tensor:
        *tensors, ctx.scale = arguments
        ctx.save_for_backward(*tensors)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not wants_autograd(grad):
            return grad, None, None, None, None, None
        needs = [*ctx.needs_input_grad[1:5], False]
        return None, *gradients_by_autograd(_by_products, [*ctx.saved_tensors, ctx.scale], needs, grad)
