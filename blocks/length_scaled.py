"""Length-scaled cosine attention.

Papers:
- `TransNeXt: Robust Foveal Visual Perception for Vision Transformers` - https://arxiv.org/abs/2311.17132
"""

import math

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from attnzoo.kernels import full_attention, normalize

from ._common import check_heads, check_map, make_dropout
from .aggregated import init_temperature
from .continuous_position_bias import ContinuousPositionBias


class LengthScaledAttention(nn.Module):
    """Attention of every token of a channels-last map to every other, as in the last stage of TransNeXt.

    Scores are cosines, scaled by a learned temperature and by the logarithm of the number of tokens, plus a continuous
    position bias. Parameters have the official names, but for `cpb.fc1` and `cpb.fc2` (`cpb_fc1`, `cpb_fc2` there).

    Args:
        dim: Channels of input and output, C.
        num_heads: Heads; they divide `dim`.
        pretrain_size: Height and width of the map at pre-training, a number or a pair.
        qkv_bias: Whether the projection to q, k and v has a bias.
        bias_size: See `ContinuousPositionBias`.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout of the output.

    Shape: [B, H, W, C] -> [B, H, W, C], any H and W.

    Raises:
        ValueError: `num_heads` does not divide `dim`, a size or rate is out of range, or the input is no such map.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        pretrain_size: int | tuple[int, int] = 7,
        qkv_bias: bool = True,
        bias_size: int | tuple[int, int] | None = None,
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
        self.temperature = nn.Parameter(torch.empty(num_heads, 1, 1, **dd))
        self.query_embedding = nn.Parameter(torch.empty(num_heads, 1, dim // num_heads, **dd))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.cpb = ContinuousPositionBias(num_heads, pretrain_size, bias_size=bias_size, **dd)
        self.attn_drop = make_dropout('attn_drop', attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = make_dropout('proj_drop', proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise what is this module's own: temperature and embedding."""
        init_temperature(self.temperature)
        trunc_normal_(self.query_embedding, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, self.dim)
        size = x.shape[1], x.shape[2]
        q, k, v = self.qkv(x).flatten(1, 2).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        scale = F.softplus(self.temperature) * math.log(size[0] * size[1])
        q = ((normalize(q) + self.query_embedding) * scale).to(v.dtype)
        out = full_attention(
            q,
            normalize(k),
            v,
            mask=self.cpb(size).to(v.dtype),
            scale=1.0,
            dropout=self.attn_drop.p if self.attn_drop.training else 0.0,
        )
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2).unflatten(1, size)))
