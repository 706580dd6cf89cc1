"""Which neighbours the positions of a map have."""

import torch
from torch import Tensor


def beyond_border(height: int, width: int, window: tuple[int, int], device: torch.device) -> Tensor:
    """Which neighbours [Wh * Ww, H, W] of each position are not on the map."""
    outside = []
    for size, span in ((height, window[0]), (width, window[1])):
        place = torch.arange(size, device=device) + torch.arange(span, device=device).unsqueeze(1) - span // 2
        outside.append((place < 0) | (place >= size))
    rows, columns = outside
    return (rows[:, None, :, None] | columns[None, :, None, :]).flatten(0, 1)


def count_keys(height: int, width: int, window: tuple[int, int], pooled: int, like: Tensor) -> Tensor:
    """The keys of each position, neighbours on the map and pooled ones: [H, W], in float32 at least."""
    on_map = ~beyond_border(height, width, window, like.device)
    return on_map.sum(0).to(torch.float64 if like.dtype == torch.float64 else torch.float32) + pooled
