"""The convolutional GLU in plain PyTorch: the definition of the op, and what runs where a kernel does not."""

import torch
from torch import Tensor
from torch.nn import functional as F

from attnzoo.kernels._cpu import (
    LARGE_BYTES,
    by_hand,
    runs_by_hand,
    slices,
    sum_of_rows,
    wants_gradient,
    zeros_for_sums,
)
from attnzoo.kernels._dispatch import cast_for_autocast
from attnzoo.kernels.depthwise_conv.reference import convolve, depthwise_conv_reference
from attnzoo.kernels.depthwise_conv.reference import gradients as conv_gradients

PART_BYTES = 4 << 20  # of a hidden map, where the op goes by parts


def conv_glu_reference(
    x: Tensor,
    fc1_weight: Tensor,
    conv_weight: Tensor,
    fc2_weight: Tensor,
    fc1_bias: Tensor | None,
    conv_bias: Tensor | None,
    fc2_bias: Tensor | None,
    dropout: float,
) -> Tensor:
    """The op on arguments that `conv_glu` has checked."""
    arguments = (x, fc1_weight, conv_weight, fc2_weight, fc1_bias, conv_bias, fc2_bias)
    if torch.jit.is_scripting():
        return _plain(x, fc1_weight, conv_weight, fc2_weight, fc1_bias, conv_bias, fc2_bias, dropout)
    else:
        if dropout == 0.0 and runs_by_hand(*arguments):
            cast = cast_for_autocast(*arguments)
            if wants_gradient(*cast):
                return by_hand(_forward, _backward, _plain, *cast)
            return _forward(*cast, keep=False)[0]
        return _plain(*arguments, dropout)


def _plain(
    x: Tensor,
    fc1_weight: Tensor,
    conv_weight: Tensor,
    fc2_weight: Tensor,
    fc1_bias: Tensor | None,
    conv_bias: Tensor | None,
    fc2_bias: Tensor | None,
    dropout: float = 0.0,
) -> Tensor:
    # Two products instead of one: both halves are maps of their own then, which the convolution takes as they lie.
    hidden = conv_weight.shape[0]
    gate_bias = None if fc1_bias is None else fc1_bias[:hidden]
    value_bias = None if fc1_bias is None else fc1_bias[hidden:]
    gate = F.linear(x, fc1_weight[:hidden], gate_bias)
    value = F.linear(x, fc1_weight[hidden:], value_bias)
    out = F.gelu(depthwise_conv_reference(gate, conv_weight, conv_bias)) * value
    if dropout > 0.0:
        out = F.dropout(out, dropout)
    return F.linear(out, fc2_weight, fc2_bias)


def _image_bytes(x: Tensor, conv_weight: Tensor) -> int:
    """Bytes of the hidden map of one image."""
    return x.shape[1] * x.shape[2] * conv_weight.shape[0] * x.element_size()


def _parts(x: Tensor, conv_weight: Tensor) -> list[slice]:
    return slices(x.shape[0], _image_bytes(x, conv_weight), PART_BYTES)


def _halves(fc1_weight: Tensor, fc1_bias: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of the gate, and of the value."""
    weights = fc1_weight.chunk(2)
    biases = (None, None) if fc1_bias is None else fc1_bias.chunk(2)
    return list(zip(weights, biases, strict=True))


def _forward(
    x: Tensor,
    fc1_weight: Tensor,
    conv_weight: Tensor,
    fc2_weight: Tensor,
    fc1_bias: Tensor | None,
    conv_bias: Tensor | None,
    fc2_bias: Tensor | None,
    *,
    keep: bool = True,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    halves, kept = _halves(fc1_weight, fc1_bias), []
    keep &= _image_bytes(x, conv_weight) * x.shape[0] < LARGE_BYTES
    out = x.new_empty(*x.shape[:3], fc2_weight.shape[0])
    for part in _parts(x, conv_weight):
        gate, value = (F.linear(x[part], *half) for half in halves)
        conv = convolve(gate, conv_weight, conv_bias)
        if keep:
            kept += [gate, value, conv]
            hidden = F.gelu(conv)
        else:
            hidden = torch.ops.aten.gelu_(conv)
        out[part] = F.linear(hidden.mul_(value), fc2_weight, fc2_bias)
    return out, tuple(kept)


def _backward(
    grad: Tensor,
    needs: list[bool],
    kept: list[Tensor],
    x: Tensor,
    fc1_weight: Tensor,
    conv_weight: Tensor,
    fc2_weight: Tensor,
    fc1_bias: Tensor | None,
    conv_bias: Tensor | None,
    fc2_bias: Tensor | None,
) -> tuple[Tensor | None, ...]:
    halves = _halves(fc1_weight, fc1_bias)
    arguments = (x, fc1_weight, conv_weight, fc2_weight, fc1_bias, conv_bias, fc2_bias)
    grads = [None, *zeros_for_sums(arguments[1:], needs[1:])]
    d_x = torch.empty_like(x, memory_format=torch.contiguous_format) if needs[0] else None
    for i, part in enumerate(_parts(x, conv_weight)):
        rows, d_out = x[part].flatten(0, 2), grad[part].flatten(0, 2)
        if kept:
            gate, value, conv = kept[3 * i : 3 * i + 3]
        else:
            gate, value = (F.linear(x[part], *half) for half in halves)
            conv = convolve(gate, conv_weight, conv_bias)
        active = F.gelu(conv)
        d_hidden = (d_out @ fc2_weight).view_as(conv)
        if grads[3] is not None:
            grads[3] += d_out.mT @ (active * value).flatten(0, 2)
        if grads[6] is not None:
            grads[6] += sum_of_rows(d_out)
        d_value = active.mul_(d_hidden)
        d_conv = torch.ops.aten.gelu_backward(d_hidden.mul_(value), conv)
        del value, conv, d_hidden
        d_gate, d_kernel, d_bias = conv_gradients(d_conv, gate, conv_weight, [True, needs[2], needs[5]])
        for total, one in ((grads[2], d_kernel), (grads[5], d_bias)):
            if total is not None:
                total += one  # type: ignore[arg-type]
        d_halves = [d_gate.flatten(0, 2), d_value.flatten(0, 2)]  # type: ignore[union-attr]
        if grads[1] is not None:
            for total, one in zip(grads[1].chunk(2), d_halves, strict=True):
                total += one.mT @ rows
        if grads[4] is not None:
            for total, one in zip(grads[4].chunk(2), d_halves, strict=True):
                total += sum_of_rows(one)
        if d_x is not None:
            d_rows = d_x[part].flatten(0, 2)
            torch.mm(d_halves[0], halves[0][0], out=d_rows)
            d_rows.addmm_(d_halves[1], halves[1][0])
    return d_x, *(one if one is None else one.to(x.dtype) for one in grads[1:])
