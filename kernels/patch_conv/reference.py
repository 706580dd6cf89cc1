"""Convolution into overlapping patches in plain PyTorch: the definition of the op, and what runs without a kernel."""

import torch
from torch import Tensor
from torch.nn import functional as F

from attnzoo.kernels._cpu import by_hand, runs_by_hand, sum_of_rows
from attnzoo.kernels._dispatch import cast_for_autocast

PART_BYTES = 4 << 20  # of the patches that are taken apart at a time


def patch_conv_reference(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """The op on arguments that `patch_conv` has checked."""
    if torch.jit.is_scripting():
        return convolve(x, weight, bias, stride)
    else:
        kernel = weight.shape[2]
        # PyTorch takes several times as long for the gradient of such weights as for a product of that size.
        slow = kernel >= 4 * stride and kernel % stride == 0
        if slow and weight.requires_grad and torch.is_grad_enabled() and runs_by_hand(x, weight, bias):
            return by_hand(_forward, _backward, convolve, *cast_for_autocast(x, weight, bias), stride)
        return convolve(x, weight, bias, stride)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    return F.conv2d(x, weight, bias, stride, (weight.shape[2] - stride) // 2)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> tuple[Tensor, tuple[()]]:
    return convolve(x, weight, bias, stride), ()


def _backward(
    grad: Tensor, needs: list[bool], kept: list[Tensor], x: Tensor, weight: Tensor, bias: Tensor | None, stride: int
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    padding = (weight.shape[2] - stride) // 2
    d_x = None
    if needs[0]:
        d_x = torch.ops.aten.convolution_backward(
            grad, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [True, False, False]
        )[0]
    return (
        d_x,
        weight_gradient(grad, x, weight, stride, padding) if needs[1] else None,
        sum_of_rows(grad.permute(0, 2, 3, 1).flatten(0, 2)) if needs[2] else None,
        None,
    )


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """The gradient of the weights [D, C, k, k], for a k that the stride divides, by products.

    A kernel is cut into bands, each as high as the stride. A band's patches are those of the band above, one row of
    patches further down: it is enough to take the patches of one band apart, and to move the gradient instead.
    """
    (height, width), (dim, channels, kernel, _) = grad.shape[2:], weight.shape
    bands = kernel // stride
    rows = height + bands - 1
    bottom, right = stride * rows - padding - x.shape[2], stride * (width + bands - 1) - padding - x.shape[3]
    padded = F.pad(x, (padding, right, padding, bottom))
    image, channel, line, pixel = padded.stride()
    patches = padded.as_strided(
        (x.shape[0], rows, width, channels, stride, kernel),
        (image, stride * line, stride * pixel, channel, line, pixel),
        padded.storage_offset(),
    )
    moved = F.pad(grad.permute(0, 2, 3, 1), (0, 0, 0, 0, bands - 1, bands - 1)).unfold(1, bands, 1)
    size = channels * stride * kernel
    total = torch.zeros(
        (size, dim * bands), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device
    )  # sums over parts round once
    step = max(1, PART_BYTES // (width * size * x.element_size()))
    for i in range(x.shape[0]):
        for row in range(0, rows, step):
            part = slice(row, row + step)
            total += patches[i, part].reshape(-1, size).t() @ moved[i, part].reshape(-1, dim * bands)
    # The gradient that was moved furthest down belongs to the first band.
    total = total.view(channels, stride, kernel, dim, bands).flip(4).permute(3, 0, 4, 1, 2)
    return total.reshape(weight.shape).to(weight.dtype)
