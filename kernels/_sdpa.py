"""Attention of all queries to all keys by PyTorch's SDPA, which lacks some derivatives."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ._autograd import gradients_by_autograd, wants_autograd
from ._cpu import prefers_products, runs_by_hand, wants_gradient
from ._dispatch import is_plain_eager, is_transformed
from ._fx import fx_leaf


@fx_leaf
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
    if dropout == 0.0 and runs_by_hand(q, k, v, mask):
        training = wants_gradient(q, k, v, mask)
        if not training and mask is not None:
            # SDPA would be slow for the sake of a gradient that is not wanted, or of three dimensions.
            mask = mask.detach().expand(1, *mask.shape) if mask.ndim == 3 else mask.detach()
        learned, half = training and mask is not None and mask.requires_grad, q.element_size() <= 2
        # In half precision SDPA has exact scores; the products give that up for the gradients' sake alone.
        if prefers_products(k.shape[2], half, training, learned) and (training or not half):
            return _written_out(q, k, v, mask, scale)
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


def _written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    scores, factor = q @ k.transpose(2, 3), q.shape[3] ** -0.5 if scale is None else scale
    scores = scores * factor if mask is None else torch.add(mask, scores, alpha=factor)
    return scores.softmax(-1).to(v.dtype) @ v


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
