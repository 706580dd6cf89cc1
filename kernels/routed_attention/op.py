"""Routed attention: the public functions, which check their input and choose what runs."""

import torch
from torch import Tensor

from attnzoo.kernels._checks import check_devices, check_dropout, check_dtypes, check_map
from attnzoo.kernels._dispatch import cast_for_autocast
from attnzoo.kernels._fx import fx_leaf

from . import reference


@fx_leaf
def route_regions(
    q: Tensor,
    k: Tensor,
    regions: tuple[int, int],
    top_k: int,
    scale: float | None = None,
    valid: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose, for every query region, the key regions whose mean key is most similar to its mean query.

    The upper level of bi-level routing attention (arXiv 2303.08810). B batch, H and W map, C channels,
    R = Ry * Rx regions.

    Args:
        q: Queries, [B, H, W, C].
        k: Keys, [B, H, W, C].
        regions: Regions along height and width, (Ry, Rx); they divide H and W.
        top_k: Regions to choose for each, from 1 to R.
        scale: Factor of the scores, C ** -0.5 when None; it shapes the weights, not the choice.
        valid: Height and width of the map without its padding: padding then takes no part in the means, and regions
            that hold nothing else are chosen last. None: all positions count.

    Returns:
        Routes [B, R, top_k], int64 (in no promised order), and their weights [B, R, top_k], the softmax of the chosen
        scores. Neither carries a gradient.

    Raises:
        ValueError: A shape, dtype or count does not fit; the message names the argument.
    """
    if torch.jit.is_scripting():
        pass
    else:
        _check_maps(q, k, None, regions, valid)
        if q.shape != k.shape:
            raise ValueError(f'k: expected the shape of q, {tuple(q.shape)}, got {tuple(k.shape)}')
        if not 1 <= top_k <= regions[0] * regions[1]:
            raise ValueError(f'top_k: expected 1 to {regions[0] * regions[1]} (the number of regions), got {top_k}')
    return reference.route_regions(q, k, regions, top_k, q.shape[3] ** -0.5 if scale is None else scale, valid)


@fx_leaf
def routed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Tensor,
    num_heads: int,
    regions: tuple[int, int],
    scale: float | None = None,
    weights: Tensor | None = None,
    valid: tuple[int, int] | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Multi-head attention of every query region to the few key regions that its route names.

    The lower level of bi-level routing attention (arXiv 2303.08810). B batch, H and W query map, h and w key map, C
    channels, R = Ry * Rx regions. Gradients flow to q, k and v.

    Args:
        q: Queries, [B, H, W, C].
        k: Keys, [B, h, w, C]; the map may be smaller than that of the queries (pooled keys).
        v: Values, [B, h, w, Cv].
        routes: Key regions of every query region, [B, R, K], int64, as `route_regions` gives them; for all heads.
        num_heads: Heads; they divide C and Cv.
        regions: Regions along height and width, (Ry, Rx); they divide H, W, h and w.
        scale: Factor of the scores, (C / num_heads) ** -0.5 when None.
        weights: Factor on the keys and values of each chosen region, [B, R, K] (soft routing); it gets no gradient.
        valid: Height and width of the key map without its padding, which is then never attended to.
        dropout: Rate at which attention weights are dropped. With it, training keeps the gathered keys and values of
            all routes.

    Returns:
        [B, H, W, Cv].

    Raises:
        ValueError: A shape, dtype, device or count does not fit; the message names the argument.
    """
    if torch.jit.is_scripting():
        pass
    else:
        _check_maps(q, k, v, regions, valid)
        _check_routes(q, routes, weights, regions)
        if num_heads < 1 or q.shape[3] % num_heads or v.shape[3] % num_heads:
            raise ValueError(
                f'num_heads: expected a divisor of the {q.shape[3]} and {v.shape[3]} channels, got {num_heads}'
            )
        check_dropout(dropout)
        q, k, v = cast_for_autocast(q, k, v)
    if scale is None:
        scale = (q.shape[3] // num_heads) ** -0.5
    return reference.routed_attention(q, k, v, routes, regions, num_heads, scale, weights, valid, dropout)


def _check_maps(
    q: Tensor, k: Tensor, v: Tensor | None, regions: tuple[int, int], valid: tuple[int, int] | None
) -> None:
    maps = {'q': q, 'k': k} if v is None else {'q': q, 'k': k, 'v': v}
    for name, x in maps.items():
        check_map(name, x)
        if min(regions) < 1 or x.shape[1] % regions[0] or x.shape[2] % regions[1]:
            raise ValueError(
                f'regions: expected divisors of the map of {name}, {x.shape[1]} x {x.shape[2]}, got {tuple(regions)}'
            )
    check_dtypes(maps)
    check_devices('q', q, maps)
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise ValueError(f'k: expected the batch and channels of q, {tuple(q.shape)}, got {tuple(k.shape)}')
    if v is not None and v.shape[:3] != k.shape[:3]:
        raise ValueError(f'v: expected the batch and map of k, {tuple(k.shape)}, got {tuple(v.shape)}')
    if valid is not None and not (1 <= valid[0] <= k.shape[1] and 1 <= valid[1] <= k.shape[2]):
        raise ValueError(f'valid: expected a size within the key map, {tuple(k.shape[1:3])}, got {tuple(valid)}')


def _check_routes(q: Tensor, routes: Tensor, weights: Tensor | None, regions: tuple[int, int]) -> None:
    expected = (q.shape[0], regions[0] * regions[1])
    if routes.ndim != 3 or tuple(routes.shape[:2]) != expected or routes.dtype != torch.int64:
        raise ValueError(
            f'routes: expected int64 [batch, regions, chosen] = [{expected[0]}, {expected[1]}, any], '
            f'got {routes.dtype} {tuple(routes.shape)}'
        )
    check_devices('q', q, {'routes': routes})
    if weights is not None and weights.shape != routes.shape:
        raise ValueError(f'weights: expected the shape of routes, {tuple(routes.shape)}, got {tuple(weights.shape)}')
