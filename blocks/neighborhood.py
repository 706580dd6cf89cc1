"""Attention of each token to those around it.

Papers:
- `Neighborhood Attention Transformer` - https://arxiv.org/abs/2204.07143
- `Dilated Neighborhood Attention Transformer` - https://arxiv.org/abs/2209.15001
"""

import torch
from timm.layers import to_2tuple, trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from attnzoo.kernels import neighborhood_attention
from attnzoo.kernels._fx import fx_leaf

from ._common import check_heads, check_map, crop_to, make_dropout, window_size


class NeighborhoodAttention(nn.Module):
    """Neighborhood attention over a channels-last map: a window of keys around each query, which stays on the map.

    As in NATTEN 0.14, with its position bias, also where it is dilated; parameters have the official names. A map
    smaller than kernel * dilation is padded at the bottom and right before the projection to q, k and v, so that
    padded tokens hold its bias, and they are attended to, as in the official module.

    Args:
        dim: Channels of input and output, C.
        num_heads: Heads; they divide `dim`.
        kernel: Keys of a query along both axes, an odd number or a pair of them.
        dilation: Distance of adjacent keys, a number or a pair.
        qkv_bias: Whether the projection to q, k and v has a bias.
        position_bias: Learn a bias for each offset between a key and its query, and head.
        is_causal: Whether a query has only keys up to its own position, for both axes or as a pair. The first queries
            then have fewer.
        scale: Factor of the scores; None is the channels of a head ** -0.5.
        mask_padding: Keep padding out of attention. The result then differs from the official numbers on maps smaller
            than kernel * dilation.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout of the output.

    Shape: [B, H, W, C] -> [B, H, W, C], any H and W.

    Raises:
        ValueError: `num_heads` does not divide `dim`, `kernel` is even, `dilation` or a rate is out of range, or the
            input is no such map.
    """

    mask_padding: torch.jit.Final[bool]

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        kernel: int | tuple[int, int] = 7,
        dilation: int | tuple[int, int] = 1,
        qkv_bias: bool = True,
        position_bias: bool = True,
        is_causal: bool | tuple[bool, bool] = False,
        scale: float | None = None,
        mask_padding: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        check_heads(dim, num_heads)
        self.dim = dim
        self.num_heads = num_heads
        self.kernel = window_size('kernel', kernel)
        if not all(n % 2 for n in self.kernel):
            raise ValueError(f'kernel: expected odd numbers, got {kernel}')
        self.dilation = window_size('dilation', dilation)
        self.is_causal: tuple[bool, bool] = to_2tuple(is_causal)
        self.scale = (dim // num_heads) ** -0.5 if scale is None else scale
        self.mask_padding = mask_padding

        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        offsets = (num_heads, 2 * self.kernel[0] - 1, 2 * self.kernel[1] - 1)
        self.rpb = nn.Parameter(torch.empty(offsets, **dd)) if position_bias else None
        self.attn_drop = make_dropout('attn_drop', attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = make_dropout('proj_drop', proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise what is this module's own: the position bias."""
        if self.rpb is not None:
            trunc_normal_(self.rpb, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, self.dim)
        height, width = x.shape[1], x.shape[2]
        x = pad_at_least(x, (self.kernel[0] * self.dilation[0], self.kernel[1] * self.dilation[1]))
        valid: tuple[int, int] | None = None
        if self.mask_padding:
            valid = (height, width)
        q, k, v = self.qkv(x).chunk(3, -1)
        out = neighborhood_attention(
            q,
            k,
            v,
            num_heads=self.num_heads,
            kernel=self.kernel,
            dilation=self.dilation,
            bias=self.rpb,
            is_causal=self.is_causal,
            scale=self.scale,
            valid=valid,
            dropout=self.attn_drop.p if self.attn_drop.training else 0.0,
        )
        return self.proj_drop(self.proj(crop_to(out, height, width)))


@fx_leaf  # reason: it looks at sizes
def pad_at_least(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Pad a map [B, H, W, C] with zeros at the bottom and right, if it is smaller than `size`."""
    bottom, right = max(size[0] - x.shape[1], 0), max(size[1] - x.shape[2], 0)
    if bottom > 0 or right > 0:
        return F.pad(x, (0, 0, 0, right, 0, bottom))
    return x
