"""Channel attention in plain PyTorch: the definition of the op, and what runs where a kernel does not.

Legend: B images, N = H * W positions, C = heads * d channels.
"""

import torch
from torch import Tensor

from attnzoo.kernels._cpu import by_hand, runs_by_hand
from attnzoo.kernels._dispatch import cast_for_autocast

# Positions of a map from which products of each head where it lies are faster than copies of all heads.
_POSITIONS = 50
_POSITIONS_HALF = 1024  # in half precision, whose copies are smaller and whose strided products are slower


def channel_attention_reference(qkv: Tensor, num_heads: int, scale: float) -> Tensor:
    """The op on arguments that `channel_attention` has checked."""
    if torch.jit.is_scripting():
        return _plain(qkv, num_heads, scale)
    else:
        positions = qkv.shape[1] * qkv.shape[2]
        enough = positions >= (_POSITIONS if qkv.element_size() >= 4 else _POSITIONS_HALF)
        if enough and runs_by_hand(qkv):
            return by_hand(_forward, _backward, _plain, *cast_for_autocast(qkv), num_heads, scale)
        return _plain(qkv, num_heads, scale)


def _plain(qkv: Tensor, num_heads: int, scale: float) -> Tensor:
    size = qkv.shape[1:3]
    q, k, v = qkv.flatten(1, 2).unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, N, d]
    weights = ((k * scale).transpose(2, 3) @ v).softmax(-1)
    out = (weights @ q.transpose(2, 3)).permute(0, 3, 1, 2)
    return out.flatten(2).unflatten(1, size)


def _forward(qkv: Tensor, num_heads: int, scale: float) -> tuple[Tensor, tuple[Tensor]]:
    q, k, v = _heads(qkv, num_heads)
    scores = torch.stack([torch.bmm(one.mT, other) for one, other in zip(k, v, strict=True)])
    weights = torch.softmax(scores.mul_(scale), -1)  # [heads, B, d, d]
    out = qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)
    for i, head in enumerate(out.flatten(1, 2).unflatten(2, (num_heads, -1)).unbind(2)):
        head.copy_(torch.bmm(q[i], weights[i].mT))
    return out, (weights,)


def _backward(
    grad: Tensor, needs: list[bool], kept: list[Tensor], qkv: Tensor, num_heads: int, scale: float
) -> tuple[Tensor, None, None]:
    q, k, v = _heads(qkv, num_heads)
    (weights,) = kept
    grads = grad.flatten(1, 2).unflatten(2, (num_heads, -1)).unbind(2)
    d_weights = torch.stack([torch.bmm(d_out.mT, one) for d_out, one in zip(grads, q, strict=True)])
    d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype).mul_(scale)
    d_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    for i, (d_q, d_k, d_v) in enumerate(zip(*_heads(d_qkv, num_heads), strict=True)):
        d_q.copy_(torch.bmm(grads[i], weights[i]))
        d_k.copy_(torch.bmm(v[i], d_scores[i].mT))
        d_v.copy_(torch.bmm(k[i], d_scores[i]))
    return d_qkv, None, None


def _heads(qkv: Tensor, num_heads: int) -> list[tuple[Tensor, ...]]:
    """Views [B, N, d] of each head of q, of k and of v."""
    packed = qkv.flatten(1, 2).unflatten(2, (3, num_heads, -1))
    return [part.unbind(2) for part in packed.unbind(2)]
