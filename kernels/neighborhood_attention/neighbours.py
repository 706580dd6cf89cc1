"""Which keys the queries of a map have, an axis at a time, and how the axis is cut into tiles.

A query has the K keys nearest to it: those centred on it and, near a border, the first or last K. On a causal axis they
are itself and the K - 1 before it, of which the first queries lack some. With a dilation all that holds among the
positions of equal residue, and places are counted among them.
"""

import torch
from torch import Tensor

from attnzoo.kernels._tiles import Axis


def neighbours(
    size: int, kernel: int, dilation: int, is_causal: bool, valid: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The keys of each position of an axis, as [size, kernel].

    Args:
        size: Positions of the axis.
        valid: Positions that are real: the keys behind them are excluded, for real queries.

    Returns:
        The positions of the keys; their distances from the query in places, plus kernel - 1; whether they exist.
    """
    query = torch.arange(size, device=device).unsqueeze(1)
    place, residue = query // dilation, query % dilation
    first = _first_key(place, (size - residue + dilation - 1) // dilation, kernel, is_causal)
    key_place = first + torch.arange(kernel, device=device)
    key = key_place * dilation + residue
    exists = (key_place >= 0) & ((key < valid) | (query >= valid))
    return key.clamp(min=0), key_place - place + kernel - 1, exists


def _first_key(place: Tensor, count: Tensor, kernel: int, is_causal: bool) -> Tensor:
    """The place of the first key of the query at each place, of a number of places."""
    if is_causal:
        return place - kernel + 1
    return torch.minimum((place - kernel // 2).clamp(min=0), count - kernel)


def cut_axis(size: int, kernel: int, dilation: int, is_causal: bool) -> Axis:
    """Tiles whose windows hold the keys of all their queries, of the size that costs least."""
    places = -(-size // dilation)
    whole = Axis(size, places, 1, places + (kernel - 1 if is_causal else 0), kernel - 1 if is_causal else 0, dilation)
    tiles = range(max(4, kernel // 2 + 1), min(17, places))
    return min([whole, *(_cut(size, tile, kernel, dilation, is_causal) for tile in tiles)], key=_cost)


def _cut(size: int, tile: int, kernel: int, dilation: int, is_causal: bool) -> Axis:
    places = -(-size // dilation)
    count = -(-places // tile)
    if is_causal:
        return Axis(size, tile, count, tile + kernel - 1, kernel - 1, dilation)
    # The last queries all have the last keys: a last tile of few queries has keys further in front of it. (A sub-grid
    # may lack the last place.)
    queries = places - (count - 1) * tile - (1 if size % dilation else 0)
    more = max(0, kernel // 2 + 1 - queries)
    return Axis(size, tile, count, tile + kernel - 1 + more, kernel // 2 + more, dilation)


def _cost(axis: Axis) -> int:
    """Grows with the scores along an axis, and with the keys that are copied for them."""
    return axis.count * axis.window * (axis.tile + 3)


def neighbours_of_tiles(
    axis: Axis, kernel: int, is_causal: bool, valid: int, tiles: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """The same for some tiles of an axis. Queries beyond the map have keys, too, whichever.

    Returns:
        Of each key of each query's window, [residues, tiles, tile, window], its distance from the query in places, plus
        kernel - 1, and whether it is a key of the query; and the places in the window of the query's own keys,
        [residues, tiles, tile, kernel].
    """
    residue = torch.arange(axis.dilation).view(-1, 1, 1, 1)
    count = (axis.size - residue + axis.dilation - 1) // axis.dilation
    start = torch.arange(tiles.start, tiles.stop).view(-1, 1, 1) * axis.tile
    query = start + torch.arange(axis.tile).unsqueeze(1)
    if not is_causal:
        query = torch.minimum(query, count - 1)
    first = _first_key(query, count, kernel, is_causal)
    key = start - axis.before + torch.arange(axis.window)
    has = (key >= first.clamp(min=0)) & (key < first + kernel)
    is_valid = (key * axis.dilation + residue < valid) | (query * axis.dilation + residue >= valid)
    offset = (key - query + kernel - 1).expand_as(is_valid)
    own = (first - (start - axis.before) + torch.arange(kernel)).expand(axis.dilation, -1, -1, -1)
    return offset, has & is_valid, own
