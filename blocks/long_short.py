"""Long and short distance attention.

Papers:
- `CrossFormer: A Versatile Vision Transformer Hinging on Cross-scale Attention` - https://arxiv.org/abs/2108.00154
- `CrossFormer++: A Versatile Vision Transformer Hinging on Cross-scale Attention` - https://arxiv.org/abs/2303.06908
"""

from torch import Tensor, nn

from attnzoo.kernels import window_attention
from attnzoo.kernels._fx import fx_leaf

from ._common import check_heads, check_map, make_dropout
from .dynamic_position_bias import DynamicPositionBias
from .window import relative_position_index


class LongShortAttention(nn.Module):
    """Short or long distance attention over a channels-last map, with a dynamic position bias.

    Tokens attend to one another in groups of G x G: adjacent ones (short distance, SDA), or ones that lie `interval`
    apart (long distance, LDA). Padding at the right and bottom of maps that the groups do not divide is masked. A map
    whose height or width is within G is one group, whatever the interval, as in the official code.

    Args:
        dim: Channels of input and output, C, at least 16.
        num_heads: Heads; they divide `dim`.
        group: Tokens of a group along each axis, G.
        interval: Distance of a group's tokens: 1 for short distance attention, more for long distance attention.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout of the output.

    Shape: [B, H, W, C] -> [B, H, W, C], any H and W.

    Raises:
        ValueError: `dim` is less than 16, `num_heads` does not divide it, `group` or `interval` is less than 1, a rate
            is out of range, or the input is no such map.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        group: int = 7,
        interval: int = 1,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        check_heads(dim, num_heads)
        if group < 1 or interval < 1:
            raise ValueError(f'group and interval: expected at least 1, got {group} and {interval}')
        self.dim = dim
        self.num_heads = num_heads
        self.group = group
        self.interval = interval
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.pos = DynamicPositionBias(dim, num_heads, **dd)
        self.attn_drop = make_dropout('attn_drop', attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = make_dropout('proj_drop', proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, self.dim)
        _, H, W, _ = x.shape
        window, dilation = fit_group(H, W, self.group, self.interval)
        out = window_attention(
            self.qkv(x),
            dilation=dilation,
            bias=self.pos(window),
            bias_index=relative_position_index(window, x.device),
            dropout=self.attn_drop.p if self.attn_drop.training else 0.0,
            num_heads=self.num_heads,
            window=window,
        )
        return self.proj_drop(self.proj(out))


@fx_leaf  # reason: int arguments are Proxies under fx
def fit_group(height: int, width: int, group: int, interval: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Tokens of a group, and their distance, along both axes of a map."""
    if height <= group or width <= group:
        # The official code pads the shorter side and masks the padding: attention of all tokens to all.
        return (height, width), (1, 1)
    return (group, group), (interval, interval)
