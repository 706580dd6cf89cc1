"""Attention between the channels of a map.

Papers:
- `DaViT: Dual Attention Vision Transformers` - https://arxiv.org/abs/2204.03645
"""

from torch import Tensor, nn

from attnzoo.kernels import channel_attention

from ._common import check_heads, check_map, make_dropout


class ChannelGroupAttention(nn.Module):
    """Channel group attention over a channels-last map: within each group, every channel attends to every other.

    Scores are divided by the square root of the channels of a group, as in the official weights, not by that of the
    positions. Parameters have the official names, which are timm's.

    Args:
        dim: Channels of input and output, C.
        num_heads: Groups of channels; they divide `dim`.
        qkv_bias: Whether the projection to q, k and v has a bias.
        proj_drop: Dropout of the output.

    Shape: [B, H, W, C] -> [B, H, W, C], any H and W.

    Raises:
        ValueError: `num_heads` does not divide `dim`, a rate is out of range, or the input is no such map.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        check_heads(dim, num_heads)
        self.dim = dim
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = make_dropout('proj_drop', proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, self.dim)
        return self.proj_drop(self.proj(channel_attention(self.qkv(x), num_heads=self.num_heads)))
