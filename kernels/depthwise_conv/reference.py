"""Depthwise convolution in plain PyTorch: the definition of the op, and what runs where a kernel does not."""

import torch
from torch import Tensor
from torch.nn import functional as F

from attnzoo.kernels._cpu import PART_NUMBERS, by_hand, runs_by_hand, slices, sum_of_rows
from attnzoo.kernels._dispatch import cast_for_autocast
from attnzoo.kernels._math import as_dense


def depthwise_conv_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool = False, dilation: int = 1
) -> Tensor:
    """The op on arguments that `depthwise_conv` has checked."""
    if torch.jit.is_scripting():
        return _plain(x, weight, bias, residual, dilation)
    else:
        return _unscripted(x, weight, bias, residual, dilation)


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool, dilation: int) -> Tensor:
    out = convolve(x, weight, bias, dilation)
    return x + out if residual else out


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    """PyTorch's convolution on a channels-last map. Its views make no copies, and its output has the same layout."""
    padding = [dilation * (weight.shape[2] // 2), dilation * (weight.shape[3] // 2)]
    out = F.conv2d(
        x.permute(0, 3, 1, 2),
        as_dense(weight),
        bias,
        padding=padding,
        dilation=[dilation, dilation],
        groups=weight.shape[0],
    )
    return out.permute(0, 2, 3, 1)


def _unscripted(x: Tensor, weight: Tensor, bias: Tensor | None, residual: bool, dilation: int) -> Tensor:
    if not runs_by_hand(x, weight, bias):
        return _plain(x, weight, bias, residual, dilation)
    if weight.shape[2] == 1 and weight.shape[3] == 1:
        dilation = 1
    given = x
    x, weight, bias = cast_for_autocast(x, weight, bias)
    if residual and x is given and x.element_size() >= 4:
        # One more in the middle of the kernel adds x on the way. Half precision would round the kernel by that.
        weight = weight + _identity(weight)
        residual = False
    if dilation > 1 or (weight.requires_grad and torch.is_grad_enabled() and _goes_by_pieces(weight)):
        out = by_hand(_forward, _backward, convolve, x, weight, bias, dilation)
    else:
        out = convolve(x, weight, bias)
    return given + out if residual else out


def _identity(weight: Tensor) -> Tensor:
    """The kernel that gives back what it is applied to, [kh, kw]."""
    height, width = weight.shape[2:]
    kernel = weight.new_zeros(height * width)
    kernel[height * width // 2] = 1.0
    return kernel.view(height, width)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> tuple[Tensor, tuple[()]]:
    return convolve_by_grids(x, weight, bias, dilation), ()


def _backward(
    grad: Tensor, needs: list[bool], kept: list[Tensor], x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int
) -> tuple[Tensor | None, ...]:
    return *gradients(grad, x, weight, needs, dilation), None


def convolve_by_grids(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    """The same, where nothing looks on: PyTorch's dilated convolution takes several times as long as a dense one.

    With dilation d, only positions whose distance is a multiple of d meet: d x d grids, each a map for a dense kernel.
    """
    if dilation == 1:
        return convolve(x, weight, bias)
    out = x.new_empty(x.shape)
    for part in map_parts(x):
        _to_map(out[part], convolve(_to_grids(x[part], dilation), weight, bias), dilation)
    return out


def map_parts(x: Tensor) -> list[slice]:
    """A few images at a time of a map that is not empty."""
    return slices(x.shape[0], x[0].numel(), PART_NUMBERS)


def _to_grids(x: Tensor, step: int) -> Tensor:
    """[B, H, W, C] -> [step * step * B, h, w, C]: positions that are `step` apart, and zeros beyond the map."""
    bottom, right = -x.shape[1] % step, -x.shape[2] % step
    if bottom or right:
        x = F.pad(x, (0, 0, 0, right, 0, bottom))
    return x.unflatten(1, (-1, step)).unflatten(3, (-1, step)).permute(2, 4, 0, 1, 3, 5).flatten(0, 2).contiguous()


def _to_map(out: Tensor, grids: Tensor, step: int) -> None:
    """The way back, into a map of any size."""
    by_step = grids.unflatten(0, (step, step, -1)).permute(2, 3, 0, 4, 1, 5)
    out.copy_(by_step.flatten(3, 4).flatten(1, 2)[:, : out.shape[1], : out.shape[2]])


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, needs: list[bool], dilation: int = 1
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of a convolved map, of the weights and of the bias; None where they are not needed."""
    d_weight = _weight_gradient(grad, x, weight, dilation) if needs[1] else None  # first: it takes memory on the way
    d_x = convolve_by_grids(grad, weight.flip(2, 3), None, dilation) if needs[0] else None
    return d_x, d_weight, sum_of_rows(grad.flatten(0, 2)) if needs[2] else None


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    of_dense = _by_pieces if _goes_by_pieces(weight) else _by_torch
    if dilation == 1 and of_dense is _by_torch:
        return as_dense(_by_torch(grad, x, weight))
    total = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
    for part in map_parts(x):
        maps = [grad[part], x[part]]
        if dilation > 1:
            maps = [_to_grids(one, dilation) for one in maps]
        total += of_dense(*maps, weight)  # type: ignore[call-arg]
    return total.to(weight.dtype)


def _goes_by_pieces(weight: Tensor) -> bool:
    """Whether PyTorch's gradient of these weights is slow: it has a fast form for 3 x 3, not for what is larger."""
    return weight.shape[2] >= 3 and weight.shape[3] >= 3 and weight.shape[2] * weight.shape[3] > 9


def _by_torch(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return _of_channels_first(
        grad.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2), weight, [weight.shape[2] // 2, weight.shape[3] // 2]
    )


def _of_channels_first(grad: Tensor, x: Tensor, weight: Tensor, padding: list[int]) -> Tensor:
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], weight.shape[0], [False, True, False]
    )[1]


def _by_pieces(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the weights [C, 1, kh, kw] from pieces of 3 x 3, each that of a convolution of a shifted map.

    Rows and maps lie one behind the other with the zeros of the padding between them, so that shifted maps are views.
    """
    batch, height, width, channels = x.shape
    kernel_h, kernel_w = weight.shape[2:]
    top, left = kernel_h // 2, kernel_w // 2
    full_h, full_w = height + max(top, 2), width + max(left, 2)
    row = full_w * channels
    shape, strides = (batch, channels, full_h, full_w), (full_h * row, 1, row, channels)
    space = x.new_zeros((batch * full_h + kernel_h - 3) * row + (kernel_w - 3) * channels)
    middle = space.as_strided((batch, channels, height, width), strides, top * row + left * channels)
    middle.copy_(x.permute(0, 3, 1, 2))
    bottom, right = full_h - 2 - height, full_w - 2 - width
    if bottom or right:
        grad = F.pad(grad, (0, 0, 0, right, 0, bottom))
    grad = grad.permute(0, 3, 1, 2)
    kernel = weight[:, :, :3, :3].contiguous()  # only its shape matters
    d_weight = torch.empty_like(weight)
    for y in range(0, kernel_h - 1, 2):
        for z in range(0, kernel_w - 1, 2):
            shifted = space.as_strided(shape, strides, y * row + z * channels)
            d_weight[:, :, y : y + 3, z : z + 3] = _of_channels_first(grad, shifted, kernel, [0, 0])
    return d_weight
