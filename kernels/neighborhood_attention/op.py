"""`neighborhood_attention` and its unfused pair: validation and dispatch."""

import torch
from torch import Tensor

from attnzoo.kernels._checks import (
    check_devices,
    check_dropout,
    check_dtypes,
    check_heads,
    check_map,
    check_odd,
    check_shape,
)
from attnzoo.kernels._dispatch import cast_for_autocast
from attnzoo.kernels._fx import fx_leaf

from .reference import neighborhood_attention_reference, neighborhood_av_reference, neighborhood_qk_reference


@fx_leaf
def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    kernel: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    bias: Tensor | None = None,
    is_causal: tuple[bool, bool] = (False, False),
    scale: float | None = None,
    valid: tuple[int, int] | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Multi-head attention of each position of a channels-last map to the kh x kw positions around it.

    softmax(scale * q k^T + bias) v for each head. Near a border the window stays on the map, so that every query has
    as many keys; its bias follows the keys. With a dilation, all that holds among the positions of equal residue.

    Neighborhood attention (NAT, 2204.07143) and its dilated form (DiNAT, 2209.15001), as in NATTEN 0.14, which had the
    bias. Causal axes are as in NATTEN today.

    Legend: B images, H x W map, N heads of d channels, C = N * d, kernel of kh x kw keys.

    Args:
        q: Queries, [B, H, W, C].
        k: Keys, [B, H, W, C].
        v: Values, [B, H, W, C].
        num_heads: Heads, N.
        kernel: Keys (kh, kw) of a query along both axes, odd.
        dilation: Distance of adjacent keys along both axes. kernel * dilation is at most the map.
        bias: Added to the scores by the distance of key and query, [N, 2 * kh - 1, 2 * kw - 1]; the same position has
            the one in the middle. Distances are counted in dilations.
        is_causal: For both axes, whether the keys are the query's own position and those before it. The first queries
            then have fewer.
        scale: Factor of q k^T; default d ** -0.5.
        valid: Height and width of the map without its padding, which is then never attended to. None: all is attended
            to.
        dropout: Rate at which attention weights are dropped.

    Returns:
        [B, H, W, C]. All inputs get gradients.

    Raises:
        ValueError: An argument has the wrong shape, dtype, device or value; the message names it.
    """
    kernel, dilation = (kernel[0], kernel[1]), (dilation[0], dilation[1])  # they may come as lists
    is_causal = (is_causal[0], is_causal[1])
    if not torch.jit.is_scripting():
        _check_scores(q, k, num_heads, kernel, dilation, bias, valid)
        _check_maps({'q': q, 'v': v})
        check_dropout(dropout)
        q, k, v = cast_for_autocast(q, k, v)
    if scale is None:
        scale = (q.shape[3] // num_heads) ** -0.5
    return neighborhood_attention_reference(
        q, k, v, bias, num_heads, kernel, dilation, is_causal, scale, valid, dropout
    )


@fx_leaf
def neighborhood_qk(
    q: Tensor,
    k: Tensor,
    num_heads: int,
    kernel: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    bias: Tensor | None = None,
    is_causal: tuple[bool, bool] = (False, False),
    scale: float | None = None,
    valid: tuple[int, int] | None = None,
) -> Tensor:
    """The scores of neighborhood attention, scale * q k^T + bias: its first half, for what comes between the two.

    Arguments and errors are those of `neighborhood_attention`.

    Returns:
        Scores [B, N, H, W, kh * kw], of a query's keys row by row. Those that a causal axis or `valid` excludes are
        minus infinity; on a causal axis the last key is the query's own position. All inputs get gradients.
    """
    kernel, dilation = (kernel[0], kernel[1]), (dilation[0], dilation[1])
    is_causal = (is_causal[0], is_causal[1])
    if not torch.jit.is_scripting():
        _check_scores(q, k, num_heads, kernel, dilation, bias, valid)
        q, k = cast_for_autocast(q, k)
    if scale is None:
        scale = (q.shape[3] // num_heads) ** -0.5
    return neighborhood_qk_reference(q, k, bias, num_heads, kernel, dilation, is_causal, scale, valid)


@fx_leaf
def neighborhood_av(
    weights: Tensor,
    v: Tensor,
    kernel: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    is_causal: tuple[bool, bool] = (False, False),
    valid: tuple[int, int] | None = None,
) -> Tensor:
    """Sums of the values around each position, by weights: the second half of neighborhood attention.

    Args:
        weights: [B, N, H, W, kh * kw], as `neighborhood_qk` orders the keys of a query. Those of keys that a causal
            axis or `valid` excludes are not used.
        v: Values, [B, H, W, C].
        kernel, dilation, is_causal, valid: See `neighborhood_attention`.

    Returns:
        [B, H, W, C]. Both inputs get gradients.

    Raises:
        ValueError: An argument has the wrong shape, dtype, device or value; the message names it.
    """
    kernel, dilation = (kernel[0], kernel[1]), (dilation[0], dilation[1])
    is_causal = (is_causal[0], is_causal[1])
    if not torch.jit.is_scripting():
        check_map('v', v)
        _check_kernel(v, kernel, dilation, valid)
        if weights.ndim != 5:
            raise ValueError(
                'weights: expected [batch, num_heads, height, width, keys of a query], '
                f'got shape {tuple(weights.shape)}'
            )
        num_heads = weights.shape[1]
        check_heads('v', v, num_heads)
        expected = (v.shape[0], num_heads, v.shape[1], v.shape[2], kernel[0] * kernel[1])
        check_shape('weights', weights, expected, 'batch, num_heads, height, width, keys of a query')
        check_dtypes({'v': v, 'weights': weights})
        check_devices('v', v, {'weights': weights})
        weights, v = cast_for_autocast(weights, v)
    return neighborhood_av_reference(weights, v, kernel, dilation, is_causal, valid)


def _check_scores(
    q: Tensor,
    k: Tensor,
    num_heads: int,
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    bias: Tensor | None,
    valid: tuple[int, int] | None,
) -> None:
    """Raises a ValueError that names the argument, what it wants and what it got."""
    check_map('q', q)
    _check_maps({'q': q, 'k': k})
    check_heads('q', q, num_heads)
    _check_kernel(q, kernel, dilation, valid)
    axes = 'num_heads, 2 * kernel height - 1, 2 * kernel width - 1'
    check_shape('bias', bias, (num_heads, 2 * kernel[0] - 1, 2 * kernel[1] - 1), axes)
    check_devices('q', q, {'bias': bias})


def _check_maps(maps: dict[str, Tensor]) -> None:
    (first, like), (name, x) = maps.items()
    check_map(name, x)
    check_shape(name, x, like.shape, 'batch, height, width, channels')
    check_dtypes(maps)
    check_devices(first, like, {name: x})


def _check_kernel(x: Tensor, kernel: tuple[int, int], dilation: tuple[int, int], valid: tuple[int, int] | None) -> None:
    check_odd('kernel', kernel)
    if min(dilation) < 1:
        raise ValueError(f'dilation: expected at least 1 along both axes, got {dilation}')
    height, width = x.shape[1], x.shape[2]
    if kernel[0] * dilation[0] > height or kernel[1] * dilation[1] > width:
        raise ValueError(
            f'kernel: expected kernel * dilation within the map, {height} x {width}, '
            f'got {kernel} * {dilation}; pad the map to {max(height, kernel[0] * dilation[0])} x '
            f'{max(width, kernel[1] * dilation[1])}, or take an odd kernel of at most '
            f'{height // dilation[0]} x {width // dilation[1]}'
        )
    if valid is not None and not (1 <= valid[0] <= height and 1 <= valid[1] <= width):
        raise ValueError(f'valid: expected 1 to the size of the map, {height} x {width}, got {tuple(valid)}')
