"""What tests write the definitions of gates with: sums and products, nothing that PyTorch has ready."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

ACTIVATE: dict[str | None, Callable[[Tensor], Tensor]] = {
    'relu': lambda x: x.clamp(min=0),
    'relu6': lambda x: x.clamp(0, 6),
    'silu': lambda x: x / (1 + (-x).exp()),
    'gelu': lambda x: x * 0.5 * (1 + (x / math.sqrt(2)).erf()),
    'gelu_tanh': lambda x: 0.5 * x * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh()),
    'hard_swish': lambda x: x * (x + 3).clamp(0, 6) / 6,
    'tanh': lambda x: 2 / (1 + (-2 * x).exp()) - 1,
    'sigmoid': lambda x: 1 / (1 + (-x).exp()),
    'hard_sigmoid': lambda x: (x + 3).clamp(0, 6) / 6,
    None: lambda x: x,
}


def behind(out: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
    return ACTIVATE[activation](out if residual is None else out + residual)


def maximum(x: Tensor, axis: int) -> Tensor:
    """Its gradient is shared by equal maxima."""
    largest = x.detach().amax(axis, keepdim=True)
    chosen = (x == largest).to(x.dtype)
    return (x * chosen).sum(axis) / chosen.sum(axis)


def convolved(x: Tensor, weight: Tensor) -> Tensor:
    """[B, maps, h, w] under a kernel [1, maps, kh, kw], padded with zeros: [B, h, w]."""
    height, width = x.shape[2:]
    kernel_h, kernel_w = weight.shape[2:]
    padded = x.new_zeros(*x.shape[:2], height + kernel_h - 1, width + kernel_w - 1)
    top, left = kernel_h // 2, kernel_w // 2
    padded[:, :, top : top + height, left : left + width] = x
    return sum(
        (padded[:, :, i : i + height, j : j + width] * weight[:, :, i, j, None, None]).sum(1)
        for i in range(kernel_h)
        for j in range(kernel_w)
    )


def normalized(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool = False,
    eps: float = 1e-5,
) -> Tensor:
    """Batch norm of one map [B, h, w]."""
    if training or running_mean is None:
        mean, var = x.mean(), ((x - x.mean()) ** 2).mean()
    else:
        mean, var = running_mean, running_var
    out = (x - mean) / (var + eps).sqrt()
    return out * (1 if weight is None else weight) + (0 if bias is None else bias)


def spatial_gate(x: Tensor, axis: int, weight: Tensor, *norm) -> Tensor:
    """The gate that maximum and mean of x over an axis make, without that axis."""
    return ACTIVATE['sigmoid'](normalized(convolved(torch.stack([maximum(x, axis), x.mean(axis)], 1), weight), *norm))
