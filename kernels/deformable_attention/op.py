"""`deformable_attention`: validation and dispatch."""

import torch
from torch import Tensor

from attnzoo.kernels._checks import check_devices, check_shape
from attnzoo.kernels._dispatch import cast_for_autocast
from attnzoo.kernels._fx import fx_leaf

from .reference import deformable_attention_reference


@fx_leaf
def deformable_attention(values: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Sum what each query finds at a few points of several feature maps, by its attention weights.

    The multi-scale deformable attention of Deformable DETR (2010.04159). Between pixel centres, values are interpolated
    bilinearly; beyond a map they are zero. A location of 0 is a map's upper or left edge, 1 the lower or right one: the
    centre of pixel i of n lies at (i + 0.5) / n.

    Legend: B images, Q queries, N heads of d channels, L levels of H x W, P points.

    Args:
        values: The levels' maps row by row, one level after the other, [B, sum of H * W, N, d].
        shapes: Height and width of each level.
        locations: x, then y of the points, [B, Q, N, L, P, 2]; of any floating-point dtype.
        weights: [B, Q, N, L, P]; of any floating-point dtype.

    Returns:
        [B, Q, N * d], in the dtype of values. Values, locations and weights get gradients.

    Raises:
        ValueError: An argument has the wrong shape, dtype or device; the message names it.
    """
    if not torch.jit.is_scripting():
        _check(values, shapes, locations, weights)
        (values,) = cast_for_autocast(values)
    return deformable_attention_reference(values, shapes, locations, weights)


def _check(values: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> None:
    if values.ndim != 4:
        raise ValueError(f'values: expected [batch, positions, heads, head dim], got shape {tuple(values.shape)}')
    if not shapes or any(len(shape) != 2 or min(shape) < 1 for shape in shapes):
        raise ValueError(f'shapes: expected a height and width of at least 1 for each level, got {shapes}')
    positions = sum(height * width for height, width in shapes)
    if values.shape[1] != positions:
        raise ValueError(
            f'values: expected {positions} positions, the sum of height * width over shapes, got {values.shape[1]}'
        )
    batch, heads, levels = values.shape[0], values.shape[2], len(shapes)
    if locations.ndim != 6 or (locations.shape[0], *locations.shape[2:4]) != (batch, heads, levels):
        raise ValueError(
            f'locations: expected [batch, queries, heads, levels, points, 2] with a batch of {batch}, {heads} heads '
            f'and {levels} levels, got shape {tuple(locations.shape)}'
        )
    if locations.shape[5] != 2:
        raise ValueError(f'locations: expected x and y on the last axis, got shape {tuple(locations.shape)}')
    check_shape('weights', weights, locations.shape[:5], 'batch, queries, heads, levels, points')
    for name, x in (('values', values), ('locations', locations), ('weights', weights)):
        if not x.is_floating_point():
            raise ValueError(f'{name}: expected a floating-point dtype, got {x.dtype}')
    check_devices('values', values, {'locations': locations, 'weights': weights})
