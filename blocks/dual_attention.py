"""DaViT's pair of blocks: attention within windows, then attention between channels.

Papers:
- `DaViT: Dual Attention Vision Transformers` - https://arxiv.org/abs/2204.03645
"""

from timm.layers import DropPath
from torch import Tensor, nn

from ._common import check_map
from .channel_group import ChannelGroupAttention
from .conditional_position import ConditionalPositionEncoding
from .mlp import Mlp
from .window import WindowAttention


class DualAttention(nn.Module):
    """Dual attention: a block with window attention, then one with channel group attention.

    Each encodes positions before its attention and before its MLP. The parameters of `spatial_block` and
    `channel_block` have the names of timm's blocks.

    Args:
        dim: Channels of input and output, C.
        num_heads: Heads of the window attention and groups of the channel attention; they divide `dim`.
        window: Tokens of a window, a number or (Wh, Ww).
        mlp_ratio: Width of the MLPs over C.
        qkv_bias: Whether the projections to q, k and v have a bias.
        drop_path: Stochastic depth rate of each residual branch.
        attn_drop: Dropout of the weights of the window attention.
        proj_drop: Dropout of what the attentions put out, and in the MLPs behind their layers.

    Shape: [B, H, W, C] -> [B, H, W, C], any H and W.

    Raises:
        ValueError: `num_heads` does not divide `dim`, `window` or a rate is out of range, or the input is no such map.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        window: int | tuple[int, int] = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        spatial = WindowAttention(
            dim,
            num_heads,
            window,
            qkv_bias=qkv_bias,
            position_bias=False,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            **dd,
        )
        channel = ChannelGroupAttention(dim, num_heads, qkv_bias, proj_drop, **dd)
        self.spatial_block = PositionEncodedBlock(dim, spatial, mlp_ratio, drop_path, proj_drop, **dd)
        self.channel_block = PositionEncodedBlock(dim, channel, mlp_ratio, drop_path, proj_drop, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.channel_block(self.spatial_block(x))


class PositionEncodedBlock(nn.Module):
    """An attention and an MLP on residual branches, each behind a conditional position encoding and a layer norm.

    Args:
        dim: Channels of input and output, C.
        attn: The attention, [B, H, W, C] -> [B, H, W, C].
        mlp_ratio: Width of the MLP over C.
        drop_path: Stochastic depth rate of each branch.
        drop: Dropout behind both layers of the MLP.

    Shape: [B, H, W, C] -> [B, H, W, C].

    Raises:
        ValueError: The input is no such map.
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.dim = dim
        self.cpe1 = ConditionalPositionEncoding(dim, **dd)
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.attn = attn
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.cpe2 = ConditionalPositionEncoding(dim, **dd)
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=drop, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, self.dim)
        x = self.cpe1(x)
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        x = self.cpe2(x)
        return x + self.drop_path2(self.mlp(self.norm2(x)))
