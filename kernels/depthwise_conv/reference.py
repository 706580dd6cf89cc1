"""Depthwise convolution in plain PyTorch: the definition of the op, and what runs where a kernel does not."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attnzoo.kernels._cpu import by_hand, runs_by_hand, sum_of_rows
from attnzoo.kernels._dispatch import cast_for_autocast
from attnzoo.kernels._math import as_dense


def depthwise_conv_reference(x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool) -> Tensor:
    """The op on arguments that `depthwise_conv` has checked."""
    if torch.jit.is_scripting():
        return _plain(x, weight, bias, residual)
    else:
        return _unscripted(x, weight, bias, residual)


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool) -> Tensor:
    out = convolve(x, weight, bias)
    return x + out if residual else out


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """PyTorch's convolution on a channels-last map. Its views make no copies, and its output has the same layout."""
    padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    out = F.conv2d(x.permute(0, 3, 1, 2), as_dense(weight), bias, padding=padding, groups=weight.shape[0])
    return out.permute(0, 2, 3, 1)


def _unscripted(x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool) -> Tensor:
    if not runs_by_hand(x, weight, bias):
        return _plain(x, weight, bias, residual)
    given = x
    x, weight, bias = cast_for_autocast(x, weight, bias)
    if residual and x is given and x.element_size() >= 4:
        # One more in the middle of the kernel adds x on the way. Half precision would round the kernel by that.
        weight = weight + _identity(weight)
        residual = False
    if weight.requires_grad and torch.is_grad_enabled() and _is_large(weight):
        out = by_hand(_forward, _backward, convolve, x, weight, bias)
    else:
        out = convolve(x, weight, bias)
    return given + out if residual else out


def _identity(weight: Tensor) -> Tensor:
    """The kernel that gives back what it is applied to, [kh, kw]."""
    height, width = weight.shape[2:]
    kernel = weight.new_zeros(height * width)
    kernel[height * width // 2] = 1.0
    return kernel.view(height, width)


def _is_large(weight: Tensor) -> bool:
    """Whether PyTorch's gradient of these weights is slow: it has a fast form for 3 x 3, not for what is larger."""
    return weight.shape[2] >= 3 and weight.shape[3] >= 3 and weight.shape[2] * weight.shape[3] > 9


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, tuple[()]]:
    return convolve(x, weight, bias), ()


def _backward(
    grad: Tensor, needs: list[bool], kept: list[Tensor], x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor | None, ...]:
    return gradients(grad, x, weight, needs)


def gradients(grad: Tensor, x: Tensor, weight: Tensor, needs: list[bool]) -> tuple[Any, Any, Any]:
    """Gradients of a convolved map, of the weights and of the bias; None where they are not needed."""
    return (
        convolve(grad, weight.flip(2, 3), None) if needs[0] else None,
        _weight_gradient(grad, x, weight) if needs[1] else None,
        sum_of_rows(grad.flatten(0, 2)) if needs[2] else None,
    )


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the weights [C, 1, kh, kw] from pieces of 3 x 3, each that of a convolution of a shifted map."""
    kernel_h, kernel_w = weight.shape[2:]
    height, width = x.shape[1:3]
    pad_h, pad_w = kernel_h // 2, kernel_w // 2
    x, grad = x.permute(0, 3, 1, 2), grad.permute(0, 3, 1, 2)
    if (kernel_h, kernel_w) == (3, 3):
        return as_dense(_piece(grad, x, weight, 1))
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, pad_w, pad_w, pad_h, pad_h)).permute(0, 3, 1, 2)
    d_weight = torch.empty_like(weight)
    for y in range(0, kernel_h - 1, 2):
        for z in range(0, kernel_w - 1, 2):
            part = padded[:, :, y : y + height + 2, z : z + width + 2]
            d_weight[:, :, y : y + 3, z : z + 3] = _piece(grad, part, weight, 0)
    return d_weight


def _piece(grad: Tensor, x: Tensor, weight: Tensor, padding: int) -> Tensor:
    kernel = weight[:, :, :3, :3].contiguous()  # only its shape matters
    return torch.ops.aten.convolution_backward(
        grad, x, kernel, None, [1, 1], [padding, padding], [1, 1], False, [0, 0], weight.shape[0], [False, True, False]
    )[1]
