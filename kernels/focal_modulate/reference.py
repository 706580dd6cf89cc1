"""Focal modulation in plain PyTorch: the definition of the op, and what runs where a kernel does not."""

import torch
from torch import Tensor
from torch.nn import functional as F

from attnzoo.kernels._cpu import by_hand, runs_by_hand, slices, sum_of_rows, wants_gradient, zeros_for_sums
from attnzoo.kernels._dispatch import cast_for_autocast
from attnzoo.kernels.depthwise_conv.reference import convolve, gradients

# In a map of the images that a pass by hand has in hand at a time: so many that what convolutions cost by the call does
# not count.
PART_NUMBERS = 5 << 17

gelu_, gelu_backward = torch.ops.aten.gelu_, torch.ops.aten.gelu_backward


def focal_modulate_reference(
    q: Tensor,
    context: Tensor,
    gates: Tensor,
    kernels: list[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    normalize: bool,
) -> Tensor:
    """The op on arguments that `focal_modulate` has checked."""
    if torch.jit.is_scripting():
        return _plain(q, context, gates, kernels, weight, bias, normalize)
    else:
        q, context, gates, weight, bias, *kernels = cast_for_autocast(q, context, gates, weight, bias, *kernels)
        tensors = (q, context, gates, weight, bias, *kernels)
        if not runs_by_hand(*tensors):
            return _plain(q, context, gates, kernels, weight, bias, normalize)
        return by_hand(_forward, _backward, _of_all, wants_gradient(*tensors), normalize, *tensors)


def _plain(
    q: Tensor,
    context: Tensor,
    gates: Tensor,
    kernels: list[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    normalize: bool,
) -> Tensor:
    level, levels = context, len(kernels)
    for i in range(levels):
        level = F.gelu(convolve(level, kernels[i]))
        gate = gates[..., i : i + 1]
        context = level * gate if i == 0 else torch.addcmul(context, level, gate)
    context = torch.addcmul(context, F.gelu(level.mean((1, 2), keepdim=True)), gates[..., levels:])
    if normalize:
        context = context / (levels + 1)
    return q * F.linear(context, weight, bias)


def _of_all(
    trains: bool,
    normalize: bool,
    q: Tensor,
    context: Tensor,
    gates: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *kernels: Tensor,
) -> Tensor:
    return _plain(q, context, gates, list(kernels), weight, bias, normalize)


def _forward(
    trains: bool,
    normalize: bool,
    q: Tensor,
    context: Tensor,
    gates: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *kernels: Tensor,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    kept, out = [], q.new_empty(q.shape)
    for part in _parts(q):
        level, total = context[part], None
        for i, kernel in enumerate(kernels):
            convolved = convolve(level, kernel)
            if trains:
                kept.append(convolved)
            level = F.gelu(convolved) if trains else gelu_(convolved)
            total = _add(total, level, gates[part][..., i : i + 1])
        total = _add(total, F.gelu(_mean(level)), gates[part][..., -1:])
        del level, convolved
        modulator = F.linear(total.div_(len(kernels) + 1) if normalize else total, weight, bias)
        torch.mul(q[part], modulator, out=out[part])
        if trains:
            kept.append(modulator)
    return out, tuple(kept)


def _backward(
    grad: Tensor,
    needs: list[bool],
    kept: list[Tensor],
    trains: bool,
    normalize: bool,
    q: Tensor,
    context: Tensor,
    gates: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *kernels: Tensor,
) -> tuple[Tensor | None, ...]:
    maps = [torch.empty_like(one, memory_format=torch.contiguous_format) for one in (q, context, gates)]
    d_weight, d_bias, *d_kernels = sums = zeros_for_sums((weight, bias, *kernels), needs[5:])
    saved = iter(kept)
    for part in _parts(q):
        d_q, d_local, d_gates = (one[part] for one in maps)
        gate, d_out = gates[part], grad[part]
        convolved, modulator = [next(saved) for _ in kernels], next(saved)
        levels = [F.gelu(one) for one in convolved]
        mean = _mean(levels[-1])
        weighed = [*levels, F.gelu(mean)]

        d_modulator = torch.mul(d_out, q[part], out=d_q).flatten(0, 2)  # for a while it takes the place of d_q
        if d_weight is not None:
            total = None
            for i, level in enumerate(weighed):
                total = _add(total, level, gate[..., i : i + 1])
            product = d_modulator.t() @ total.flatten(0, 2)  # type: ignore[union-attr]
            d_weight += product / len(weighed) if normalize else product
            del total
        if d_bias is not None:
            d_bias += sum_of_rows(d_modulator)
        d_total = (d_modulator @ weight).view(d_q.shape)
        torch.mul(d_out, modulator, out=d_q)
        if normalize:
            d_total.div_(len(weighed))
        product = torch.empty_like(d_total)
        for i, level in enumerate(weighed):
            torch.sum(torch.mul(d_total, level, out=product), -1, out=d_gates[..., i])
        d_mean = torch.mul(d_total, gate[..., -1:], out=product).sum((1, 2), keepdim=True)
        d_level = gelu_backward(d_mean, mean) / (q.shape[1] * q.shape[2])
        del weighed, level
        levels = [context[part], *levels[:-1]]  # what each convolution took
        for i in reversed(range(len(kernels))):
            torch.addcmul(d_level, d_total, gate[..., i : i + 1], out=product)
            gelu_backward.grad_input(product, convolved[i], grad_input=product)
            d_level, d_kernel, _ = gradients(product, levels.pop(), kernels[i], [True, d_kernels[i] is not None, False])
            if d_kernels[i] is not None:
                d_kernels[i] += d_kernel  # type: ignore[operator]
        d_local.copy_(d_level)
    return None, None, *maps, *(None if one is None else one.to(q.dtype) for one in sums)


def _parts(x: Tensor) -> list[slice]:
    return slices(x.shape[0], x[0].numel(), PART_NUMBERS)


def _mean(level: Tensor) -> Tensor:
    return level.mean((1, 2), keepdim=True)


def _add(total: Tensor | None, level: Tensor, gate: Tensor) -> Tensor:
    """Adds a level that its gate has weighed to the sum of the first ones."""
    return level * gate if total is None else total.addcmul_(level, gate)
