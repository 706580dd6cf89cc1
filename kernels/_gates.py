"""What the gates of CNNs share: checks, activations, pools, and both passes over maps as they lie in memory.

A gate multiplies a map by factors in (0, 1) that a small network makes of pools of it. The network costs next to
nothing; what a gate costs is the number of times that maps are read and written.

Legend: B images, C channels, H x W map.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._checks import check_devices, check_map, check_shape
from ._cpu import slices
from ._fx import fx_leaf

ACTIVATIONS = ('relu', 'relu6', 'silu', 'gelu', 'gelu_tanh', 'hard_swish', 'tanh', 'sigmoid', 'hard_sigmoid')
PART_BYTES = 4 << 20  # of the images that a pass by hand has in hand at a time


def check_gated(x: Tensor, residual: Tensor | None, activation: str | None) -> None:
    """What all gates ask of a map, and of what comes behind the gate."""
    check_map('x', x, channels_first=True)
    if x.shape[1] * x.shape[2] * x.shape[3] == 0:
        raise ValueError(f'x: expected a map of one channel, row and column at least, got shape {tuple(x.shape)}')
    check_shape('residual', residual, x.shape, 'batch, channels, height, width')
    check_devices('x', x, {'residual': residual})
    if activation is not None:
        check_activation('activation', activation)


def check_mlp(
    channels: int,
    fc1_weight: Tensor | None,
    fc2_weight: Tensor | None,
    fc1_bias: Tensor | None,
    fc2_bias: Tensor | None,
) -> None:
    """The two layers that make gates of channels."""
    if fc1_weight is None or fc1_weight.ndim != 2 or fc1_weight.shape[1] != channels or fc1_weight.shape[0] == 0:
        raise ValueError(
            f'fc1_weight: expected [hidden, channels] with the {channels} channels of x, got {_shape(fc1_weight)}'
        )
    hidden = fc1_weight.shape[0]
    if fc2_weight is None:
        raise ValueError(f'fc2_weight: expected [channels, hidden] = {[channels, hidden]}, got None')
    check_shape('fc2_weight', fc2_weight, [channels, hidden], 'channels, hidden')
    check_shape('fc1_bias', fc1_bias, [hidden], 'hidden')
    check_shape('fc2_bias', fc2_bias, [channels], 'channels')


def _shape(x: Tensor | None) -> str:
    return 'None' if x is None else f'shape {tuple(x.shape)}'


def check_activation(name: str, activation: str) -> None:
    """Raises a ValueError unless the argument of that name is one of `ACTIVATIONS`."""
    if activation not in ACTIVATIONS:
        raise ValueError(f'{name}: expected one of {", ".join(map(repr, ACTIVATIONS))}, got {activation!r}')


def activate(x: Tensor, name: str) -> Tensor:
    """The activation of that name, one of `ACTIVATIONS`."""
    if name == 'relu':
        return F.relu(x)
    if name == 'relu6':
        return F.relu6(x)
    if name == 'silu':
        return F.silu(x)
    if name == 'gelu':
        return F.gelu(x)
    if name == 'gelu_tanh':
        return F.gelu(x, approximate='tanh')
    if name == 'hard_swish':
        return F.hardswish(x)
    if name == 'tanh':
        return torch.tanh(x)
    if name == 'sigmoid':
        return torch.sigmoid(x)
    return F.hardsigmoid(x)


def finish(out: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
    """What comes behind a gate: activation(out + residual)."""
    if residual is not None:
        out = out + residual
    if activation is not None:
        out = activate(out, activation)
    return out


@fx_leaf  # reason: a residual may be there or not
def gate_map(x: Tensor, gate: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
    """activation(x * gate + residual), in the dtype of x."""
    return finish(x * gate.to(x.dtype), residual, activation)


def behind(activation: str | None) -> tuple[str | None, str | None]:
    """Which activation a pass by hand takes along, and which is left to PyTorch: only a ReLU needs no map kept."""
    return ('relu', None) if activation == 'relu' else (None, activation)


class Small:
    """A function of small tensors that a pass by hand computes again, to take its gradients by autograd.

    Attributes:
        output: What the function gave, without a graph.
    """

    def __init__(self, function: Callable[..., Tensor], *arguments: Any):
        with torch.enable_grad():
            self._inputs = [x.detach().requires_grad_() if isinstance(x, Tensor) else x for x in arguments]
            self._output = function(*self._inputs)
        self.output = self._output.detach()

    def gradients(self, grad: Tensor) -> list[Any]:
        """Gradients of the arguments, for that of the output: None for those that are no tensors."""
        tensors = [x for x in self._inputs if isinstance(x, Tensor)]
        found = iter(torch.autograd.grad(self._output, tensors, grad.to(self._output.dtype)))
        return [next(found) if isinstance(x, Tensor) else None for x in self._inputs]


class Layout:
    """How a map lies in memory, and the parts that a pass by hand takes it in.

    Attributes:
        channel, row, column: The axes of a map as it lies, [B, C, H, W] or, where channels are innermost,
            [B, H, W, C].
        positions: Rows and columns.
        parts: Slices of the batch.
    """

    def __init__(self, x: Tensor):
        self.channels_inside = x.stride(1) == 1 and x.shape[1] > 1 and not x.is_contiguous()
        self.channel, self.row, self.column = (3, 1, 2) if self.channels_inside else (1, 2, 3)
        self.positions = (self.row, self.column)
        self.parts = slices(x.shape[0], x[0].numel() * x.element_size(), PART_BYTES)
        self._buffers: dict[str, Tensor] = {}

    def view(self, x: Tensor) -> Tensor:
        """A map [B, C, H, W] as it lies."""
        return x.permute(0, 2, 3, 1) if self.channels_inside else x

    def empty(self, x: Tensor) -> Tensor:
        """New memory for a map, without gaps."""
        return torch.empty_like(
            x, memory_format=torch.channels_last if self.channels_inside else torch.contiguous_format
        )

    def spare(self, x: Tensor, purpose: str = '', dtype: torch.dtype | None = None) -> Tensor:
        """A buffer like a part of a map. For each purpose it is the same one every time, because new memory is slow."""
        buffer = self._buffers.get(purpose)
        if buffer is None or len(buffer) < len(x):
            buffer = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
            self._buffers[purpose] = buffer
        return buffer[: len(x)]

    def forget(self) -> None:
        """Lets the buffers go."""
        self._buffers.clear()

    def along(self, x: Tensor, *axes: int) -> Tensor:
        """A small tensor [B, ...] with the axes of a map that are named in turn, to multiply with a map."""
        order = sorted(range(len(axes)), key=lambda i: axes[i])
        x = x.permute(0, *(1 + i for i in order)).contiguous()
        for axis in (1, 2, 3):
            if axis not in axes:
                x = x.unsqueeze(axis)
        return x

    def gated(self, x: Tensor, gate: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
        """A map times a gate that has its axes as they lie, and what comes behind it."""
        out = self.empty(x)
        source, target = self.view(x), self.view(out)
        if residual is None and activation is None:
            torch.mul(source, gate, out=target)
            return out
        for part in self.parts:
            self.finish(torch.mul(source[part], gate[part], out=target[part]), part, residual, activation)
        return out

    def finish(self, out: Tensor, part: slice, residual: Tensor | None, activation: str | None) -> None:
        """What comes behind the gate, in place: for a part of the output as it lies."""
        if residual is not None:
            out.add_(self.view(residual)[part])
        if activation is not None:
            out.relu_()

    def means(self, x: Tensor) -> Tensor:
        """Means [b, C] over the positions of a part of a map as it lies."""
        if x.dtype == torch.float16:  # a sum may be beyond its range
            return x.mean(self.positions)
        return self._sums(x).div_(x.shape[self.row] * x.shape[self.column])

    def _sums(self, x: Tensor) -> Tensor:
        if self.channels_inside and x.dtype == torch.bfloat16:
            rows = x.flatten(1, 2)
            return (rows.new_ones(len(x), 1, rows.shape[1]) @ rows).squeeze(1)  # several times faster than a sum
        return x.sum(self.positions)

    def sum_of_products(self, x: Tensor, other: Tensor, spare: Tensor | None = None) -> Tensor:
        """Sums [b, C] over the positions of a part of a map times another, or times one map [1, ...] for all images.

        `spare` is room for a product, in place of the buffer.
        """
        if self.channels_inside or x.dtype == torch.float16 or len(other) < len(x):
            return self._sums(torch.mul(x, other, out=self.spare(x) if spare is None else spare))
        lines = [y.flatten(2).flatten(0, 1).unsqueeze(1) for y in (x, other)]
        return torch.bmm(lines[0], lines[1].mT).view(x.shape[:2])  # without this transpose five times slower

    def sums_of_channels(self, x: Tensor, weights: Tensor) -> Tensor:
        """Sums [b, H, W] over the channels of a part of a map, each weighed: [b, C, 1, 1] or [b, 1, 1, C]."""
        if self.channels_inside:
            return (x.flatten(1, 2) @ weights.flatten(1).unsqueeze(2)).view(x.shape[:3])
        return (weights.flatten(1).unsqueeze(1) @ x.flatten(2)).view(len(x), *x.shape[2:])

    def _ones(self, x: Tensor) -> Tensor:
        return x.new_ones(len(x), x.shape[self.channel])

    def sum(self, x: Tensor, axis: int) -> Tensor:
        """The sum along an axis of a part of a map, by what is fastest: in bfloat16 often a product with ones."""
        if axis == self.channel and x.dtype != torch.float16:
            return self.sums_of_channels(x, self._ones(x))
        if axis == self.column and x.dtype == torch.bfloat16:
            ones = x.new_ones(x.shape[axis])
            if not self.channels_inside:
                return x @ ones
            lines = x.flatten(0, 1)
            return torch.bmm(ones.expand(len(lines), 1, -1), lines).view(len(x), x.shape[self.row], -1)
        return x.sum(axis)

    def mean(self, x: Tensor, axis: int) -> Tensor:
        """The mean along an axis of a part of a map."""
        if x.dtype == torch.float16:  # a sum may be beyond its range
            return x.mean(axis)
        return self.sum(x, axis).div_(x.shape[axis])

    def maximum(self, x: Tensor, axis: int) -> Tensor:
        """The maximum along an axis of a part of a map."""
        # PyTorch's own is several times slower along a middle axis than its pooling, which takes the last one for
        # channels, and along a last axis with few values than the larger of two halves, again and again.
        if axis == 2 and x.shape[3] >= 16:
            return F.max_pool2d(x.permute(0, 3, 1, 2), (1, x.shape[2])).squeeze(3).transpose(1, 2)
        while axis == 3 and not self.channels_inside and x.shape[3] > 8:
            half = x.shape[3] // 2
            first, second, last = x.split([half, half, x.shape[3] % 2], 3)
            x = torch.maximum(first, second)
            if last.shape[3]:
                x[..., :1] = torch.maximum(x[..., :1], last)
        return x.amax(axis)

    def pooled(self, x: Tensor, axes: Sequence[int]) -> Tensor:
        """What is left of a map [b, ...] where two axes are left, with these in turn."""
        return x if axes[0] < axes[1] else x.transpose(1, 2)

    def sum_of_small(self, small: Sequence[Tensor], out: Tensor) -> Tensor:
        """The sum of several tensors that lie along two axes each, of the size of a part of a map."""
        return self._of_small(torch.add, small, out)

    def product_of_small(self, small: Sequence[Tensor], out: Tensor) -> Tensor:
        """Their product."""
        return self._of_small(torch.mul, small, out)

    def _of_small(self, operation: Callable[..., Tensor], small: Sequence[Tensor], out: Tensor) -> Tensor:
        # Half precision rounds once, and is many times slower with lines of broadcast values.
        total = out if out.element_size() >= 4 else self.spare(out, 'exact', torch.float32)
        first, second, *others = (x.to(total.dtype) for x in small)
        operation(first, second, out=total)
        for x in others:
            operation(total, x, out=total)
        return out if total is out else out.copy_(total)

    def add_maximum_gradient(
        self, d_x: Tensor, x: Tensor, maximum: Tensor, d_maximum: Tensor, axes: tuple[int, ...]
    ) -> None:
        """Adds the gradient of a maximum over axes to that of a part of a map."""
        are_maxima, share = self.maxima(x, maximum, d_maximum, axes, self.spare(x))
        d_x.addcmul_(are_maxima, self._spread(share, x))

    def maxima(
        self, x: Tensor, maximum: Tensor, d_maximum: Tensor, axes: tuple[int, ...], out: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Ones where a part of a map has its maximum over axes, in `out`, which may be x; and the gradient of each.

        Equal maxima share it, as in `amax`. Maximum and gradient have the axes of x, of length one where the maximum
        was taken.
        """
        torch.eq(x, self._spread(maximum, x), out=out)
        if axes == self.positions:
            count = self.along(self._sums(out), self.channel)
        else:
            count = self.sum(out, axes[0]).unsqueeze(axes[0])
        return out, (d_maximum / count).to(x.dtype)

    def _spread(self, small: Tensor, x: Tensor) -> Tensor:
        """A small tensor, or the whole map of it, where PyTorch is many times slower with lines of broadcast values."""
        _, channels, rows, columns = small.shape
        lines = not self.channels_inside and channels > 1 and (rows > 1) != (columns > 1)
        return self.spare(x, 'spread').copy_(small) if lines and x.element_size() < 4 else small

    def scale_and_shift(self, x: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> Tensor:
        """x * scale + shift for a part of a map, where each image has both by channel, [b, C]."""
        if self.channels_inside:
            return torch.addcmul(self.along(shift, 3), x, self.along(scale, 3), out=out)
        # One pass that PyTorch has for this layout only as the batch norm of inference.
        exact = torch.promote_types(x.dtype, torch.float32)
        scale, shift = (y.to(exact).flatten() for y in (scale, shift))
        empty = [scale.new_empty(0) for _ in range(2)]
        rows, target = (y.flatten(0, 1).unsqueeze(0) for y in (x, out))
        torch.native_batch_norm(
            rows, scale, shift, torch.zeros_like(scale), torch.ones_like(scale), False, 0.0, 0.0, out=(target, *empty)
        )
        return out


class Incoming:
    """The gradient of a gated map, from that of what came behind it: called with a part, gives it as the map lies.

    Args:
        layout: Of the map.
        grad: Gradient of the output.
        out: The output, where a ReLU ended it.
        residual: Whether the gradient of a residual is wanted.

    Attributes:
        d_residual: That gradient, complete when all parts have been called for.
    """

    def __init__(self, layout: Layout, grad: Tensor, out: Tensor | None, residual: bool):
        self._grad, self._out = layout.view(grad), None if out is None else layout.view(out)
        self._target = None
        self.d_residual = grad if residual else None
        if residual and out is not None:
            self.d_residual = torch.empty_like(out)
            self._target = layout.view(self.d_residual)

    def __call__(self, part: slice) -> Tensor:
        grad = self._grad[part].contiguous()
        if self._out is None:
            return grad
        backward = torch.ops.aten.threshold_backward
        if self._target is None:
            return backward(grad, self._out[part], 0)
        return backward.grad_input(grad, self._out[part], 0, grad_input=self._target[part])
