"""Attention of the blocks of a map to themselves and a halo around them.

Papers:
- `Scaling Local Self-Attention for Parameter Efficient Visual Backbones` - https://arxiv.org/abs/2103.12731
"""

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from attnzoo.kernels import halo_attention

from ._common import check_map, window_size
from ._relative import RelativePositions, head_dims, to_channels_first


class HaloAttention(nn.Module):
    """Halo attention in the place of a convolution: blocks of queries, each with the keys of its block and around it.

    timm's `HaloAttn`, whose parameters and names it has, for maps of any size: they are filled up to whole blocks. Keys
    beyond the map, of the halo or of a block that is not whole, are zeros that take part, as in timm, or are masked.

    Args:
        dim: Channels of the input.
        dim_out: Channels of the output; None is `dim`.
        stride: 1 or 2; 2 halves the map. The queries are then those of every second position, or with `avg_down` all,
            whose results are averaged.
        num_heads: Heads; they divide `dim_out`.
        head_dim: Channels of a head's queries and keys; None follows from `qk_ratio`.
        block: Rows and columns of a block.
        halo: Rows and columns around it.
        qk_ratio: The channels of queries and keys over those of the output, where `head_dim` is None.
        qkv_bias: Whether the projections to queries, keys and values have a bias.
        avg_down: See `stride`. It is so, too, if the stride does not divide the block.
        scale_position: Scale the relative logits like the others.
        mask_padding: Keep keys beyond the map out of attention. The result then differs from timm's.

    Shape: [B, dim, H, W] -> [B, dim_out, H / stride, W / stride], rounded up; any H and W, both memory formats.

    Raises:
        ValueError: `num_heads` does not divide `dim_out`, another argument is out of range, or the input is no such
            map.
    """

    mask_padding: torch.jit.Final[bool]

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        stride: int = 1,
        num_heads: int = 8,
        head_dim: int | None = None,
        block: int = 8,
        halo: int = 3,
        qk_ratio: float = 1.0,
        qkv_bias: bool = False,
        avg_down: bool = False,
        scale_position: bool = False,
        mask_padding: bool = False,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        dim_out = dim_out or dim
        if stride not in (1, 2):
            raise ValueError(f'stride: expected 1 or 2, got {stride}')
        if halo < 0:
            raise ValueError(f'halo: expected 0 or more, got {halo}')
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim, values_dim = head_dims(dim_out, num_heads, head_dim, qk_ratio)
        self.block = window_size('block', block)
        self.halo = (halo, halo)
        pooled = stride == 2 and (avg_down or block % 2 != 0)
        self.stride = 1 if pooled else stride
        self.position_scale = self.head_dim**-0.5 if scale_position else 1.0
        self.mask_padding = mask_padding

        self.q = nn.Conv2d(dim, num_heads * self.head_dim, 1, stride=self.stride, bias=qkv_bias, **dd)
        self.kv = nn.Conv2d(dim, num_heads * (self.head_dim + values_dim), 1, bias=qkv_bias, **dd)
        self.pos_embed = RelativePositions((block + 2 * halo, block + 2 * halo), self.head_dim, **dd)
        # Rounding up, as strided convolutions do.
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True) if pooled else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the projections; the tables initialise themselves."""
        for projection in (self.q, self.kv):
            trunc_normal_(projection.weight, std=self.dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, self.dim, channels_first=True)
        out = halo_attention(
            self.q(x).permute(0, 2, 3, 1),
            self.kv(x).permute(0, 2, 3, 1),
            None,
            self.pos_embed.height_rel,
            self.pos_embed.width_rel,
            num_heads=self.num_heads,
            block=self.block,
            halo=self.halo,
            stride=self.stride,
            position_scale=self.position_scale,
            mask_padding=self.mask_padding,
        )
        return self.pool(to_channels_first(out, x))
