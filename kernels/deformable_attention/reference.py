"""Deformable attention in plain PyTorch: the definition of the op, and what runs where a kernel does not.

Legend: B images, Q queries, N heads of d channels, L levels of H x W, P points.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from attnzoo.kernels._autograd import gradients_by_autograd
from attnzoo.kernels._cpu import by_hand, runs_by_hand
from attnzoo.kernels._dispatch import is_plain_eager

from . import eager_cpu


def deformable_attention_reference(
    values: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """The op on arguments that `deformable_attention` has checked."""
    if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript leaves out a branch by this test alone)
        if values.numel() > 0 and locations.numel() > 0:
            if runs_by_hand(values, locations, weights):
                return by_hand(eager_cpu.forward, eager_cpu.backward, _plain, values, shapes, locations, weights)
            # Sampling's backward adds up in any order on a GPU.
            deterministic = torch.are_deterministic_algorithms_enabled()
            if values.is_cuda and not deterministic and is_plain_eager(values, locations, weights):
                return by_hand(_sample, _backward_of_sample, _plain, values, shapes, locations, weights)
    return _plain(values, shapes, locations, weights)


def _plain(values: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Pixels around all points are gathered side by side, a level at a time, then summed by a product."""
    batch, queries, heads, _, points, _ = locations.shape
    values, locations = values.transpose(1, 2), locations.transpose(1, 2)
    locations, weights = _at_least_float32(locations), _at_least_float32(weights.transpose(1, 2))
    out = values.new_zeros([batch, heads, queries, 1, values.shape[3]])
    start = 0
    for level, (height, width) in enumerate(shapes):
        pixels = values[:, :, start : start + height * width]
        start += height * width
        x = locations[:, :, :, level, :, 0] * width - 0.5
        y = locations[:, :, :, level, :, 1] * height - 0.5
        left, top = x.floor(), y.floor()
        rows: list[Tensor] = []
        shares: list[Tensor] = []
        for line, in_line in ((top, top + 1 - y), (top + 1, y - top)):
            for column, in_column in ((left, left + 1 - x), (left + 1, x - left)):
                inside = (line >= 0) & (line < height) & (column >= 0) & (column < width)
                rows.append(_pixel(line, height) * width + _pixel(column, width))
                shares.append(in_line * in_column * inside * weights[:, :, :, level])
        index = torch.stack(rows, 3).flatten(2).unsqueeze(3).expand(-1, -1, -1, values.shape[3])
        around = pixels.gather(2, index).unflatten(2, (queries, 4 * points))
        out = out + torch.stack(shares, 3).flatten(3).unsqueeze(3).to(values.dtype) @ around
    return out.squeeze(3).transpose(1, 2).flatten(2)


def _pixel(place: Tensor, count: int) -> Tensor:
    """The pixel of an axis that is nearest to a place."""
    return place.detach().clamp(0.0, count - 1.0).nan_to_num().long()


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.element_size() < 4 else x


def _sample(
    values: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> tuple[Tensor, tuple[()]]:
    """By PyTorch's own sampling, in a quarter of the memory; but it has no second derivatives."""
    return _by_sampling(values, shapes, locations, weights), ()


def _backward_of_sample(
    grad: Tensor,
    needs: list[bool],
    kept: list[Tensor],
    values: Tensor,
    shapes: list[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
) -> tuple[Tensor | None, ...]:
    return gradients_by_autograd(_by_sampling, [values, shapes, locations, weights], needs, grad)


def _by_sampling(values: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    heads, head_dim = values.shape[2:]
    dtype = torch.promote_types(torch.promote_types(locations.dtype, weights.dtype), torch.float32)
    weights = weights.to(dtype).transpose(1, 2).flatten(0, 1)  # [B * N, Q, L, P]
    out: Tensor | None = None
    start = 0
    for level, (height, width) in enumerate(shapes):
        pixels = values[:, start : start + height * width].to(dtype)
        start += height * width
        maps = pixels.flatten(2).transpose(1, 2).reshape(-1, head_dim, height, width)
        grid = 2 * locations[:, :, :, level].to(dtype).transpose(1, 2).flatten(0, 1) - 1
        found = F.grid_sample(maps, grid, align_corners=False)  # [B * N, d, Q, P]
        found = (found * weights[:, None, :, level]).sum(3)
        out = found if out is None else out + found
    assert out is not None  # there is a level at least
    return out.unflatten(0, (-1, heads)).flatten(1, 2).transpose(1, 2).to(values.dtype)
