"""Bi-level routing attention.

Papers:
- `BiFormer: Vision Transformer with Bi-Level Routing Attention` - https://arxiv.org/abs/2303.08810

Regions are routed to regions first, by their mean query and key; tokens then attend to the tokens of the routed regions
only. A depthwise convolution of the values (LePE, local enhancement) is added before the output projection.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnzoo.kernels import depthwise_conv, route_regions, routed_attention
from attnzoo.kernels._fx import fx_leaf

from ._common import check_heads, check_map, crop_to, make_dropout, pad_to


class BiLevelRoutingAttention(nn.Module):
    """Bi-level routing attention over a channels-last map.

    The official code has two arithmetics for maps that the regions do not divide, and checkpoints for both:

    - `padding='input'` (BiFormer): always `regions` x `regions` regions. The input is padded with zeros at the right
      and bottom before the projection, so that padded tokens carry the bias of q, k and v, count in the region means
      and are attended to.
    - `padding='projection'` (`biformer_stl_nchw`): regions of size map // `regions`, so their number grows. Queries,
      keys and values are padded with zeros after the projection; the means leave padding out, attention does not.

    Where the regions divide the map, both are the same function.

    Args:
        dim: Channels of input and output, C.
        num_heads: Heads; they divide `dim` and `qk_dim`.
        regions: Regions along each axis.
        top_k: Regions that a region attends to (fewer where the map has fewer).
        qk_dim: Channels of queries and keys, `dim` when None.
        qk_scale: Factor of the scores, qk_dim ** -0.5 when None (the full width, as the official code has it).
        side_kernel: Kernel of the depthwise convolution on the values, 0 for none.
        soft_routing: Multiply the keys and values of each routed region by its routing weight.
        kv_pool: Keys and values per region and axis after average pooling, None for no pooling.
        padding: 'input' or 'projection', see above.
        mask_padding: Keep padding out of means, attention and the convolution. The result then does not depend on it,
            and differs from the official numbers on maps that the regions do not divide.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout of the output.

    Shape: [B, H, W, C] -> [B, H, W, C], any H and W.

    Raises:
        ValueError: An argument is out of range or does not fit the others, or the input is no such map.
    """

    soft_routing: torch.jit.Final[bool]
    mask_padding: torch.jit.Final[bool]
    by_size: torch.jit.Final[bool]

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        regions: int = 7,
        top_k: int = 4,
        qk_dim: int | None = None,
        qk_scale: float | None = None,
        side_kernel: int = 5,
        soft_routing: bool = False,
        kv_pool: int | None = None,
        padding: str = 'input',
        mask_padding: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        qk_dim = qk_dim or dim
        check_heads(dim, num_heads)
        check_heads(qk_dim, num_heads)
        if top_k < 1 or regions < 1:
            raise ValueError(f'top_k and regions: expected at least 1, got {top_k} and {regions}')
        if padding not in ('input', 'projection'):
            raise ValueError(f"padding: expected 'input' or 'projection', got {padding!r}")
        if kv_pool is not None and mask_padding:
            raise ValueError('mask_padding: not defined for pooled keys, whose bins mix tokens and padding')
        self.dim = dim
        self.qk_dim = qk_dim
        self.num_heads = num_heads
        self.regions = regions
        self.top_k = top_k
        self.scale = qk_scale or qk_dim**-0.5
        self.soft_routing = soft_routing
        self.kv_pool = kv_pool
        self.mask_padding = mask_padding
        self.by_size = padding == 'projection'

        self.qkv = nn.Linear(dim, 2 * qk_dim + dim, **dd)
        self.lepe = (
            nn.Conv2d(dim, dim, side_kernel, padding=side_kernel // 2, groups=dim, **dd) if side_kernel else None
        )
        self.attn_drop = make_dropout('attn_drop', attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = make_dropout('proj_drop', proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, self.dim)
        _, H, W, _ = x.shape
        grid, padded, top_k = region_grid(H, W, self.regions, self.top_k, self.by_size)
        if not self.by_size:
            x = pad_to(x, padded)
        q, k, v = self.qkv(x).split([self.qk_dim, self.qk_dim, self.dim], dim=-1)
        local = crop_to(v, H, W) if self.mask_padding else v
        if self.by_size:
            q, k, v = pad_to(q, padded), pad_to(k, padded), pad_to(v, padded)

        routes, weights = route_regions(
            q,
            k,
            regions=grid,
            top_k=top_k,
            scale=self.scale,
            valid=(H, W) if self.mask_padding or self.by_size else None,
        )
        if self.kv_pool is not None:
            k, v = pool_regions(k, grid, self.kv_pool), pool_regions(v, grid, self.kv_pool)
        out = routed_attention(
            q,
            k,
            v,
            routes,
            num_heads=self.num_heads,
            regions=grid,
            scale=self.scale,
            weights=weights if self.soft_routing else None,
            valid=(H, W) if self.mask_padding else None,
            dropout=self.attn_drop.p if self.attn_drop.training else 0.0,
        )
        out = crop_to(out, H, W)
        if self.lepe is not None:
            out = out + crop_to(depthwise_conv(local, self.lepe.weight, self.lepe.bias), H, W)
        return self.proj_drop(self.proj(out))


@fx_leaf  # reason: the sizes are Proxies under fx, and max, min and % decide on them
def region_grid(
    height: int, width: int, regions: int, top_k: int, by_size: bool
) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Regions along each axis, the padded map that they divide, and how many of them a route can name."""
    rows, columns = regions, regions
    # Rounding up by adding first: symbolic shapes (torch.compile) know no remainder of a negative number.
    region_h, region_w = (height + regions - 1) // regions, (width + regions - 1) // regions
    if by_size:
        region_h, region_w = max(1, height // regions), max(1, width // regions)
        rows, columns = (height + region_h - 1) // region_h, (width + region_w - 1) // region_w
    padded = (rows * region_h, columns * region_w)
    return (rows, columns), padded, min(top_k, rows * columns)


@fx_leaf  # reason: int arguments are Proxies
def pool_regions(x: Tensor, regions: tuple[int, int], size: int) -> Tensor:
    """Average each region of a map [B, H, W, C] down to size x size tokens."""
    x = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), (regions[0] * size, regions[1] * size))
    return x.permute(0, 2, 3, 1)
