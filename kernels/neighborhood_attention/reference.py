"""Neighborhood attention in plain PyTorch: the definition of the three ops, and what runs where a kernel does not.

Legend: B images, H x W map, N heads of d channels, C = N * d, K = kh * kw keys of a query.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from attnzoo.kernels._cpu import by_hand, runs_by_hand

from . import eager_cpu
from .neighbours import neighbours


def neighborhood_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    num_heads: int,
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    is_causal: tuple[bool, bool],
    scale: float,
    valid: tuple[int, int] | None,
    dropout: float,
) -> Tensor:
    """The op on arguments that `neighborhood_attention` has checked."""
    if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript leaves out a branch by this test alone)
        if dropout == 0.0 and runs_by_hand(q, k, v, bias):
            return by_hand(
                eager_cpu.forward, eager_cpu.backward, _attend,
                q, k, v, bias, num_heads, kernel, dilation, is_causal, scale, valid,
            )  # fmt: skip
    scores = neighborhood_qk_reference(q, k, bias, num_heads, kernel, dilation, is_causal, scale, valid)
    weights = scores.softmax(-1)
    if dropout > 0.0:
        weights = F.dropout(weights, dropout)
    return neighborhood_av_reference(weights.to(v.dtype), v, kernel, dilation, is_causal, valid)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    num_heads: int,
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    is_causal: tuple[bool, bool],
    scale: float,
    valid: tuple[int, int] | None,
) -> Tensor:
    weights = _score(q, k, bias, num_heads, kernel, dilation, is_causal, scale, valid).softmax(-1).to(v.dtype)
    return _weigh(weights, v, kernel, dilation, is_causal, valid)


def neighborhood_qk_reference(
    q: Tensor,
    k: Tensor,
    bias: Tensor | None,
    num_heads: int,
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    is_causal: tuple[bool, bool],
    scale: float,
    valid: tuple[int, int] | None,
) -> Tensor:
    """The op on arguments that `neighborhood_qk` has checked."""
    if not torch.jit.is_scripting():  # noqa: SIM102
        if runs_by_hand(q, k, bias):
            return by_hand(
                eager_cpu.forward_qk, eager_cpu.backward_qk, _score,
                q, k, bias, num_heads, kernel, dilation, is_causal, scale, valid,
            )  # fmt: skip
    return _score(q, k, bias, num_heads, kernel, dilation, is_causal, scale, valid)


def neighborhood_av_reference(
    weights: Tensor,
    v: Tensor,
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    is_causal: tuple[bool, bool],
    valid: tuple[int, int] | None,
) -> Tensor:
    """The op on arguments that `neighborhood_av` has checked."""
    if not torch.jit.is_scripting():  # noqa: SIM102
        if runs_by_hand(v, weights):
            return by_hand(
                eager_cpu.forward_av, eager_cpu.backward_av, _weigh, weights, v, kernel, dilation, is_causal, valid
            )
    return _weigh(weights, v, kernel, dilation, is_causal, valid)


def _score(
    q: Tensor,
    k: Tensor,
    bias: Tensor | None,
    num_heads: int,
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    is_causal: tuple[bool, bool],
    scale: float,
    valid: tuple[int, int] | None,
) -> Tensor:
    height, width = q.shape[1], q.shape[2]
    keys, offsets, exists = _neighbours_on_map(height, width, kernel, dilation, is_causal, valid, q.device)
    near = k.flatten(1, 2).index_select(1, keys.flatten()).unflatten(1, (height * width, -1))
    near = near.unflatten(3, (num_heads, -1))  # [B, H * W, K, N, d]
    scores = torch.einsum('bpnd,bpknd->bnpk', q.flatten(1, 2).unflatten(2, (num_heads, -1)), near) * scale
    if bias is not None:
        own = bias.flatten(1).index_select(1, offsets.flatten()).unflatten(1, (height * width, -1))
        scores = scores + own.to(scores.dtype)
    if is_causal[0] or is_causal[1] or valid is not None:
        scores = scores.masked_fill(~exists, float('-inf'))
    return scores.unflatten(2, (height, width))


def _weigh(
    weights: Tensor,
    v: Tensor,
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    is_causal: tuple[bool, bool],
    valid: tuple[int, int] | None,
) -> Tensor:
    height, width = v.shape[1], v.shape[2]
    keys, _, exists = _neighbours_on_map(height, width, kernel, dilation, is_causal, valid, v.device)
    near = v.flatten(1, 2).index_select(1, keys.flatten()).unflatten(1, (height * width, -1))
    near = near.unflatten(3, (weights.shape[1], -1))
    weights = weights.flatten(2, 3)
    if is_causal[0] or is_causal[1] or valid is not None:
        weights = weights.masked_fill(~exists, 0.0)
    out = torch.einsum('bnpk,bpknd->bpnd', weights, near)
    return out.flatten(2).unflatten(1, (height, width))


def _neighbours_on_map(
    height: int,
    width: int,
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    is_causal: tuple[bool, bool],
    valid: tuple[int, int] | None,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of the keys of each query, the places of their offsets in a bias, whether they exist: [H * W, K]."""
    if valid is None:
        valid = (height, width)
    y, row, row_exists = neighbours(height, kernel[0], dilation[0], is_causal[0], valid[0], device)
    x, column, column_exists = neighbours(width, kernel[1], dilation[1], is_causal[1], valid[1], device)

    keys = y[:, None, :, None] * width + x[None, :, None, :]  # [H, W, kh, kw]
    offsets = row[:, None, :, None] * (2 * kernel[1] - 1) + column[None, :, None, :]
    exists = row_exists[:, None, :, None] & column_exists[None, :, None, :]
    return keys.flatten(2).flatten(0, 1), offsets.flatten(2).flatten(0, 1), exists.flatten(2).flatten(0, 1)
