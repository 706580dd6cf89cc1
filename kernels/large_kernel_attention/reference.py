"""Large kernel attention in plain PyTorch: the definition of the op, and what runs where a kernel does not."""

import torch
from torch import Tensor
from torch.nn import functional as F

from attnzoo.kernels._cpu import (
    by_hand,
    infers_by_hand,
    runs_by_hand,
    some_images_at_a_time,
    sum_of_rows,
    zeros_for_sums,
)
from attnzoo.kernels._dispatch import cast_for_autocast
from attnzoo.kernels.depthwise_conv.reference import (
    convolve,
    convolve_by_grids,
    depthwise_conv_reference,
    gradients,
    map_parts,
)


def large_kernel_attention_reference(
    x: Tensor,
    local_weight: Tensor,
    dilated_weight: Tensor,
    weight: Tensor,
    local_bias: Tensor | None,
    dilated_bias: Tensor | None,
    bias: Tensor | None,
    dilation: int,
) -> Tensor:
    """The op on arguments that `large_kernel_attention` has checked."""
    if torch.jit.is_scripting():
        return _plain(x, local_weight, dilated_weight, weight, local_bias, dilated_bias, bias, dilation)
    else:
        return _unscripted(x, local_weight, dilated_weight, weight, local_bias, dilated_bias, bias, dilation=dilation)


def _unscripted(*given: Tensor | None, dilation: int) -> Tensor:
    x, *weights = tensors = cast_for_autocast(*given)
    if infers_by_hand(*tensors):
        return some_images_at_a_time(lambda part: _plain(part, *weights, dilation), x, x.shape[3])  # type: ignore[call-arg]
    if runs_by_hand(*tensors):
        return by_hand(_forward, _backward, _plain, *tensors, dilation)
    return _plain(*tensors, dilation)  # type: ignore[call-arg]


def _plain(
    x: Tensor,
    local_weight: Tensor,
    dilated_weight: Tensor,
    weight: Tensor,
    local_bias: Tensor | None,
    dilated_bias: Tensor | None,
    bias: Tensor | None,
    dilation: int,
) -> Tensor:
    around = depthwise_conv_reference(x, local_weight, local_bias)
    around = depthwise_conv_reference(around, dilated_weight, dilated_bias, False, dilation)
    return x * F.linear(around, weight, bias)


def _forward(
    x: Tensor,
    local_weight: Tensor,
    dilated_weight: Tensor,
    weight: Tensor,
    local_bias: Tensor | None,
    dilated_bias: Tensor | None,
    bias: Tensor | None,
    dilation: int,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    kept = []
    out = x.new_empty(x.shape)
    for part in map_parts(x):
        local = convolve(x[part], local_weight, local_bias)
        around = convolve_by_grids(local, dilated_weight, dilated_bias, dilation)
        factor = F.linear(around, weight, bias)
        torch.mul(x[part], factor, out=out[part])
        kept += [around, factor]
    return out, tuple(kept)


def _backward(
    grad: Tensor,
    needs: list[bool],
    kept: list[Tensor],
    x: Tensor,
    local_weight: Tensor,
    dilated_weight: Tensor,
    weight: Tensor,
    local_bias: Tensor | None,
    dilated_bias: Tensor | None,
    bias: Tensor | None,
    dilation: int,
) -> tuple[Tensor | None, ...]:
    d_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    weights = (local_weight, dilated_weight, weight, local_bias, dilated_bias, bias)
    sums = zeros_for_sums(weights, needs[1:7])
    for i, part in enumerate(map_parts(x)):
        around, factor = kept[2 * i : 2 * i + 2]
        d_factor = (grad[part] * x[part]).flatten(0, 2)
        d_around = (d_factor @ weight).view(around.shape)
        local = convolve(x[part], local_weight, local_bias)
        d_local, *of_dilated = gradients(d_around, local, dilated_weight, [True, needs[2], needs[5]], dilation)
        d_part, *of_local = gradients(d_local, x[part], local_weight, [True, needs[1], needs[4]])  # type: ignore[arg-type]
        torch.addcmul(d_part, grad[part], factor, out=d_x[part])  # type: ignore[arg-type]
        d_weight = d_factor.t() @ around.flatten(0, 2) if needs[3] else None
        d_bias = sum_of_rows(d_factor) if needs[6] else None
        found = (of_local[0], of_dilated[0], d_weight, of_local[1], of_dilated[1], d_bias)
        for total, one in zip(sums, found, strict=True):
            if total is not None:
                total += one  # type: ignore[arg-type]
    return d_x, *(None if total is None else total.to(x.dtype) for total in sums), None
