"""`window_attention`: validation and dispatch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attnzoo.kernels._checks import check_choice, check_devices, check_dropout, check_dtypes, check_map, check_pair_bias
from attnzoo.kernels._dispatch import cast_for_autocast, use_triton
from attnzoo.kernels._fx import fx_leaf
from attnzoo.kernels._op import attention_obstacle, kernel_op

from .reference import window_attention_reference
from .windows import Call, is_in_tiles, make_partition


@fx_leaf
def window_attention(
    q: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    partition: str = 'window',
    dilation: tuple[int, int] = (1, 1),
    shift: tuple[int, int] = (0, 0),
    pad_after_shift: bool = False,
    qkv_layout: str = '3hd',
    bias: Tensor | None = None,
    bias_index: Tensor | None = None,
    scale: float | None = None,
    cosine_scale: Tensor | None = None,
    padding: Tensor | None = None,
    dropout: float = 0.0,
    backend: str = 'auto',
    *,  # here, because TorchScript takes no defaults behind it; pass all but q, k and v by name
    num_heads: int,
    window: tuple[int, int],
) -> Tensor:
    """Multi-head attention within the windows of a channels-last feature map, of any size.

    Each token attends to the tokens of its own window: softmax(scale * q k^T + bias) v for each head. The map is
    cut where it lies: nothing is rolled, partitioned or padded by the caller.

    Legend: B images, H x W map, C = num_heads * d channels, N = Wh * Ww tokens of a window.

    Papers: Swin Transformer (2103.14030) and V2 (2111.09883), MaxViT (2204.01697), CrossFormer (2108.00154),
    DaViT (2204.03645), GC-ViT (2206.09959).

    Args:
        q: Packed queries, keys and values [B, H, W, 3C], k and v left out; or queries [B, H, W, C]; or, with
            k and v, one window of queries an image [B, Wh, Ww, C] that all its windows share (GC-ViT).
        k: Keys [B, H, W, C].
        v: Values [B, H, W, C].
        partition: 'window': tokens of a window are `dilation` positions apart. 'grid': they are spread evenly over the
            whole map (MaxViT's grid attention), that is, the dilation is the map's size over the window's, rounded up.
        dilation: Distance of a window's tokens in both axes: (1, 1) for adjacent ones, the interval for CrossFormer's
            long distance attention. Tiles of window * dilation positions hold the windows of all their residues.
        shift: Cyclic shift (up, left) in tokens before the partition, undone afterwards; tokens that the shift brings
            together from opposite edges are kept apart by -100 on their scores, as in Swin. Not with a dilation.
        pad_after_shift: Where the map does not divide: False pads it before the shift (Swin's detection code,
            torchvision), True after it (timm).
        qkv_layout: Channel order of a packed map: '3hd' has all heads of q, then of k, then of v (Swin); 'h3d' has
            q, k and v of the first head, then of the second (timm's MaxViT-rw and CoAtNet).
        bias: Added to the scores: dense [num_heads, N, N], or a table [T, num_heads] with `bias_index`.
        bias_index: Integers [N, N]: the row of the table that each (query, key) pair takes.
        scale: Factor of q k^T; default d ** -0.5.
        cosine_scale: [num_heads] or [num_heads, 1, 1]. If given, scores are cosines of q and k times this (SwinV2: the
            exponential of the clamped logit scale) instead of scaled products.
        padding: Where the map does not divide it is padded at the bottom and at the right. None: padded tokens are
            excluded (CrossFormer). A value, [3C] in the channel order of a packed q, else [2C] for k, then v: padded
            tokens have it and are attended to. Swin and DaViT give them the bias of their projection.
        dropout: Rate at which attention weights are dropped; 0 in inference. The kernel has none: PyTorch does it.
        backend: 'auto', 'triton' or 'torch'; `attnzoo.kernels.why` tells what 'auto' took.
        num_heads: Number of heads.
        window: Tokens (Wh, Ww) of a window.

    Returns:
        The map [B, H, W, C], in q's dtype. All floating-point inputs get gradients.

    Raises:
        ValueError: An argument has the wrong shape, dtype, device or value, or backend='triton' cannot run here.
    """
    window, dilation, shift = (window[0], window[1]), (dilation[0], dilation[1]), (shift[0], shift[1])  # maybe lists
    if not torch.jit.is_scripting():
        _check(
            q, k, v, num_heads, window, partition, dilation, shift, qkv_layout,
            bias, bias_index, scale, cosine_scale, padding, dropout,
        )  # fmt: skip
        q, k, v = cast_for_autocast(q, k, v)
    height, width = (q if k is None else k).shape[1:3]
    if partition == 'grid':
        dilation = ((height + window[0] - 1) // window[0], (width + window[1] - 1) // window[1])
    cut = make_partition((height, width), window, dilation, shift, pad_after_shift)
    if cut.padded == cut.size:
        padding = None  # which blocks pass on every map
    call = Call(cut, num_heads, qkv_layout, scale, dropout)
    if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript leaves out a branch by this test alone)
        if use_triton('window_attention', backend, q, _obstacle(q, k, v, call)):
            return _run_kernel(call, q, k, v, bias, bias_index, cosine_scale, padding)
    return window_attention_reference(q, k, v, bias, bias_index, cosine_scale, padding, call)


def _flops(call: Call, out_shape: Sequence[int]) -> tuple[int, int]:
    """Products of queries with keys and of weights with values; backward the scores again, and four gradients."""
    tokens = call.cut.window[0] * call.cut.window[1]
    product = 2 * out_shape[0] * call.cut.groups * tokens**2 * out_shape[3]
    return 2 * product, 5 * product


_run_kernel = kernel_op(
    'window_attention',
    'q k? v? bias? bias_index? cosine_scale? padding?',
    Call,
    kernel=f'{__package__}.kernel',
    reference=window_attention_reference,
    keeps=2,
    keeps_output=is_in_tiles,
    flops=_flops,
)


def _check(
    q: Tensor, k: Tensor | None, v: Tensor | None, num_heads: int, window: tuple[int, int],
    partition: str, dilation: tuple[int, int], shift: tuple[int, int], qkv_layout: str,
    bias: Tensor | None, bias_index: Tensor | None, scale: float | None, cosine_scale: Tensor | None,
    padding: Tensor | None, dropout: float,
) -> None:  # fmt: skip
    """Raises a ValueError that names the argument, what it wants and what it got."""
    if (k is None) != (v is None):
        raise ValueError(f'{"k" if k is None else "v"}: expected a map, since its counterpart is given, got None')
    for name, x in (('q', q), ('k', k), ('v', v)):
        if x is not None:
            check_map(name, x)
    check_dtypes({'q': q, 'k': k, 'v': v})
    packed, keys = k is None, q if k is None else k
    batch, height, width, channels = keys.shape
    parts = 3 if packed else 1
    if num_heads < 1 or channels == 0 or channels % (parts * num_heads):
        raise ValueError(
            f'num_heads: expected {"3 * num_heads" if packed else "num_heads"} to divide the {channels} channels of '
            f'{"a packed q" if packed else "k"}, got {num_heads}'
        )
    channels //= parts
    if not (1 <= window[0] <= height and 1 <= window[1] <= width):
        raise ValueError(f'window: expected 1 to the size of the map, {height} x {width}, got {tuple(window)}')
    if v is not None and v.shape != keys.shape:
        raise ValueError(f'v: expected the shape of k, {tuple(keys.shape)}, got {tuple(v.shape)}')
    if not packed and q.shape not in (keys.shape, (batch, window[0], window[1], channels)):
        raise ValueError(
            f'q: expected the shape of k, {tuple(keys.shape)}, or a window an image, '
            f'{(batch, window[0], window[1], channels)}, got {tuple(q.shape)}'
        )
    check_choice('partition', partition, ('window', 'grid'))
    check_choice('qkv_layout', qkv_layout, ('3hd', 'h3d'))
    if min(dilation) < 1 or (partition == 'grid' and max(dilation) > 1):
        raise ValueError(f'dilation: expected at least 1, and (1, 1) with a grid, which has its own, got {dilation}')
    if not (0 <= shift[0] < window[0] and 0 <= shift[1] < window[1]):
        raise ValueError(f'shift: expected 0 to less than the window, {tuple(window)}, got {tuple(shift)}')
    if max(shift) > 0 and (partition == 'grid' or max(dilation) > 1):
        raise ValueError(f'shift: expected (0, 0) with a dilation or a grid, got {tuple(shift)}')
    check_pair_bias(bias, bias_index, num_heads, window[0] * window[1])
    if cosine_scale is not None and cosine_scale.numel() != num_heads:
        raise ValueError(f'cosine_scale: expected [num_heads = {num_heads}], got shape {tuple(cosine_scale.shape)}')
    if cosine_scale is not None and scale is not None:
        raise ValueError(f'scale: expected None with a cosine_scale, which takes its place, got {scale}')
    if padding is not None and padding.shape != ((3 if packed else 2) * channels,):
        what = f'[3C] = {(3 * channels,)} with a packed q' if packed else f'[2C] = {(2 * channels,)}, k then v'
        raise ValueError(f'padding: expected {what}, got shape {tuple(padding.shape)}')
    check_dropout(dropout)
    others = {'k': k, 'v': v, 'bias': bias, 'bias_index': bias_index, 'cosine_scale': cosine_scale, 'padding': padding}
    check_devices('q', q, others)


def _obstacle(q: Tensor, k: Tensor | None, v: Tensor | None, call: Call) -> str | None:
    """Why the kernel does not take these arguments, if so."""
    if call.dropout > 0.0:
        return 'its kernel has no dropout'
    head_dim, tokens = q.shape[3] // call.num_heads // (3 if k is None else 1), call.cut.window[0] * call.cut.window[1]
    if tokens > 256:
        return f'its kernel takes windows of up to 256 tokens, not {tokens}'
    return attention_obstacle(head_dim, q, k, v)
