"""`halo_attention`: validation and dispatch."""

import torch
from torch import Tensor

from attnzoo.kernels._checks import check_devices, check_dtypes, check_heads, check_map, check_shape
from attnzoo.kernels._dispatch import cast_for_autocast
from attnzoo.kernels._fx import fx_leaf

from .reference import halo_attention_reference


@fx_leaf
def halo_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    height_rel: Tensor,
    width_rel: Tensor,
    num_heads: int,
    block: tuple[int, int],
    halo: tuple[int, int],
    stride: int = 1,
    scale: float | None = None,
    position_scale: float = 1.0,
    mask_padding: bool = False,
) -> Tensor:
    """Multi-head attention of the blocks of a channels-last map, each to its own positions and a halo around them.

    For each head, with u and x the row and column of a key in its window and i and j those of a query in its block:

        scores = scale * q k^T + position_scale * (q height_rel[u - i + Wh - 1] + q width_rel[x - j + Ww - 1])

    The attention of HaloNet (2103.12731), as in timm. One block that is the whole map, without a halo, makes the
    global attention of BoTNet (2101.11605).

    Legend: B images, H x W map, N heads of d channels (values: e), stride s, window of Wh x Ww = block + 2 * halo.

    Args:
        q: Queries, [B, H / s, W / s, N * d], rounded up.
        k: Keys, [B, H, W, N * d]; without v the keys and the values of each head side by side, [B, H, W, N * (d + e)].
        v: Values, [B, H, W, N * e].
        height_rel: Of each distance along the height, [2 * Wh - 1, d].
        width_rel: Of each distance along the width, [2 * Ww - 1, d].
        num_heads: Heads, N.
        block: Rows and columns of a block of keys; the stride divides both. The map may have any size.
        halo: Rows above and below a block, and columns at its left and right.
        stride: Distance of adjacent queries in positions of the map.
        scale: Factor of q k^T; default d ** -0.5.
        position_scale: Factor of the relative logits.
        mask_padding: Keep what lies beyond the map out of attention. False: keys and values are zeros there, and are
            attended to, as in timm.

    Returns:
        [B, H / s, W / s, N * e]. All inputs get gradients.

    Raises:
        ValueError: An argument has the wrong shape, dtype, device or value; the message names it.
    """
    block, halo = (block[0], block[1]), (halo[0], halo[1])  # they may come as lists
    if not torch.jit.is_scripting():
        _check(q, k, v, height_rel, width_rel, num_heads, block, halo, stride)
        q, k, v = cast_for_autocast(q, k, v)
    if scale is None:
        scale = (q.shape[3] // num_heads) ** -0.5
    return halo_attention_reference(
        q, k, v, height_rel, width_rel, num_heads, block, halo, stride, scale, position_scale, mask_padding
    )


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    height_rel: Tensor,
    width_rel: Tensor,
    num_heads: int,
    block: tuple[int, int],
    halo: tuple[int, int],
    stride: int,
) -> None:
    """Raises a ValueError that names the argument, what it wants and what it got."""
    for name, x in (('q', q), ('k', k), ('v', v)):
        if x is not None:
            check_map(name, x)
    check_dtypes({'q': q, 'k': k, 'v': v})
    if stride < 1 or min(block) < 1 or block[0] % stride or block[1] % stride:
        raise ValueError(f'block: expected multiples of the stride, {stride}, at least 1, got {block}')
    if min(halo) < 0:
        raise ValueError(f'halo: expected 0 or more, got {halo}')
    check_heads('q', q, num_heads)
    batch, height, width, channels = k.shape
    head_dim = q.shape[3] // num_heads
    axes = 'batch, height / stride, width / stride, channels'
    check_shape('q', q, (batch, -(-height // stride), -(-width // stride), q.shape[3]), axes)
    if v is not None:
        check_shape('k', k, (batch, height, width, num_heads * head_dim), 'batch, height, width, channels of q')
        check_shape('v', v, (batch, height, width, v.shape[3]), 'batch, height, width, channels')
        check_heads('v', v, num_heads)
    elif channels % num_heads or channels // num_heads <= head_dim:
        raise ValueError(
            f'k: expected without v the keys and values of {num_heads} heads, more than {head_dim} channels each, '
            f'got {channels} channels'
        )
    window = block[0] + 2 * halo[0], block[1] + 2 * halo[1]
    for name, x, length in (('height_rel', height_rel, window[0]), ('width_rel', width_rel, window[1])):
        check_shape(name, x, (2 * length - 1, head_dim), '2 * window - 1, channels of a head')
    check_devices('q', q, {'k': k, 'v': v, 'height_rel': height_rel, 'width_rel': width_rel})
