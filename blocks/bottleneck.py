"""Attention of all positions of a map to all, with relative positions.

Papers:
- `Bottleneck Transformers for Visual Recognition` - https://arxiv.org/abs/2101.11605
"""

from timm.layers import trunc_normal_
from torch import Tensor, nn

from attnzoo.kernels import halo_attention
from attnzoo.kernels._fx import fx_leaf

from ._common import check_map, window_size
from ._relative import RelativePositions, head_dims, to_channels_first


class BottleneckAttention(nn.Module):
    """Global attention in the place of a convolution, with logits of relative positions (BoTNet).

    timm's `BottleneckAttn`, whose parameters and names it has.

    Args:
        dim: Channels of the input.
        feat_size: Height and width of the maps, a number or a pair: the tables of relative positions are made for it.
        dim_out: Channels of the output; None is `dim`.
        stride: 1, or 2, which averages the result over 2 x 2 positions.
        num_heads: Heads; they divide `dim_out`.
        head_dim: Channels of a head's queries and keys; None follows from `qk_ratio`.
        qk_ratio: The channels of queries and keys over those of the output, where `head_dim` is None.
        qkv_bias: Whether the projection to queries, keys and values has a bias.
        scale_position: Scale the relative logits like the others.

    Shape: [B, dim, H, W] -> [B, dim_out, H / stride, W / stride], rounded up; H and W are `feat_size`; both memory
    formats.

    Raises:
        ValueError: `num_heads` does not divide `dim_out`, another argument is out of range, or the input is no such map
            or of another size.
    """

    def __init__(
        self,
        dim: int,
        feat_size: int | tuple[int, int],
        dim_out: int | None = None,
        stride: int = 1,
        num_heads: int = 4,
        head_dim: int | None = None,
        qk_ratio: float = 1.0,
        qkv_bias: bool = False,
        scale_position: bool = False,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        dim_out = dim_out or dim
        if stride not in (1, 2):
            raise ValueError(f'stride: expected 1 or 2, got {stride}')
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim, values_dim = head_dims(dim_out, num_heads, head_dim, qk_ratio)
        self.feat_size = window_size('feat_size', feat_size)
        self.position_scale = self.head_dim**-0.5 if scale_position else 1.0
        self.widths = [num_heads * self.head_dim, num_heads * self.head_dim, num_heads * values_dim]

        self.qkv = nn.Conv2d(dim, sum(self.widths), 1, bias=qkv_bias, **dd)
        self.pos_embed = RelativePositions(self.feat_size, self.head_dim, **dd)
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True) if stride == 2 else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the projection; the tables initialise themselves."""
        trunc_normal_(self.qkv.weight, std=self.dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, self.dim, channels_first=True)
        check_feat_size(x, self.feat_size)
        q, k, v = self.qkv(x).permute(0, 2, 3, 1).split(self.widths, 3)
        out = halo_attention(
            q,
            k,
            v,
            self.pos_embed.height_rel,
            self.pos_embed.width_rel,
            num_heads=self.num_heads,
            block=self.feat_size,
            halo=(0, 0),
            position_scale=self.position_scale,
        )
        return self.pool(to_channels_first(out, x))


@fx_leaf  # reason: it looks at the shape
def check_feat_size(x: Tensor, feat_size: tuple[int, int]) -> None:
    """Raises a ValueError unless x [B, C, H, W] has this height and width."""
    height, width = x.shape[2], x.shape[3]
    if (height, width) != (feat_size[0], feat_size[1]):  # it may come as a list
        raise ValueError(
            f'x: expected a map of {feat_size[0]} x {feat_size[1]}, for which this module has relative positions '
            f'(feat_size), got {height} x {width}: make a module with feat_size=({height}, {width})'
        )
