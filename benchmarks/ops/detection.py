"""Ops of detectors: deformable attention against what published models do without their kernel."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from attnzoo.kernels import deformable_attention

from .case import Case

HEADS, HEAD_DIM, POINTS = 8, 32, 4


def deformable(batch: int, shapes: list[tuple[int, int]], queries: int | None, heads: int, head_dim: int) -> Case:
    """Points around each of that many queries or, with None, around each pixel of all maps, as in an encoder."""

    def ours(values: Tensor, weights: Tensor, locations: Tensor) -> Tensor:
        return deformable_attention(values, shapes, locations, weights)

    def grid_sample(values: Tensor, weights: Tensor, locations: Tensor) -> Tensor:
        """All points of all levels sampled side by side, then weighed and summed."""
        by_level = values.split([height * width for height, width in shapes], 1)
        grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1).unbind(2)
        sampled = [
            F.grid_sample(x.flatten(2).mT.reshape(-1, head_dim, *shape).to(grid.dtype), grid, align_corners=False)
            for x, shape, grid in zip(by_level, shapes, grids, strict=True)
        ]
        shares = weights.transpose(1, 2).flatten(0, 1).flatten(2).unsqueeze(1)
        out = (torch.cat(sampled, -1) * shares).sum(-1)
        return out.view(batch, heads * head_dim, -1).mT.contiguous().to(values.dtype)

    if queries is None:
        corners = [torch.cartesian_prod(torch.arange(height), torch.arange(width)).flip(1) for height, width in shapes]
        pixels = [(x + 0.5) / torch.tensor([width, height]) for x, (height, width) in zip(corners, shapes, strict=True)]
        around = torch.cat(pixels)[:, None, None, None]
    else:
        around = torch.rand(queries, 1, 1, 1, 2)
    sizes = torch.tensor([[width, height] for height, width in shapes])[:, None]
    offsets = torch.randn(batch, len(around), heads, len(shapes), POINTS, 2) * 2 / sizes  # two pixels off
    weights = torch.randn(offsets.shape[:-1]).flatten(3).softmax(-1).view(offsets.shape[:-1])
    values = torch.randn(batch, sum(height * width for height, width in shapes), heads, head_dim)
    return Case(ours, grid_sample, [values], [weights, around + offsets])


LARGE = [(100, 168), (50, 84), (25, 42), (13, 21)]  # an image of 800 x 1344 at strides 8 to 64
HALF = [(50, 84), (25, 42), (13, 21), (7, 11)]

CASES: dict[str, Callable[[int], Case]] = {
    'deformable_attention, encoder, 400 x 672': lambda batch: deformable(batch, HALF, None, HEADS, HEAD_DIM),
    'deformable_attention, decoder, 800 x 1344': lambda batch: deformable(batch, LARGE, 300, HEADS, HEAD_DIM),
}

SMALL: dict[str, Callable[[], Case]] = {
    'deformable_attention, encoder': lambda: deformable(2, [(4, 5), (2, 3)], None, 2, 4),
    'deformable_attention, decoder': lambda: deformable(2, [(4, 5), (2, 3)], 7, 2, 4),
}
