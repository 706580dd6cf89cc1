"""Aggregated attention: to the neighbours of each token and to a pooled map.

Papers:
- `TransNeXt: Robust Foveal Visual Perception for Vision Transformers` - https://arxiv.org/abs/2311.17132
"""

import math

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from attnzoo.kernels import aggregated_attention

from ._common import check_heads, check_map, make_dropout
from .continuous_position_bias import ContinuousPositionBias, pooled_size


class AggregatedAttention(nn.Module):
    """Aggregated attention over a channels-last map: a local window and a pooled map under one softmax.

    Scores are cosines, scaled by a learned temperature and by the logarithm of the number of keys. Parameters have the
    official names, but for `cpb.fc1` and `cpb.fc2` (`cpb_fc1` and `cpb_fc2` there).

    Args:
        dim: Channels of input and output, C.
        num_heads: Heads; they divide `dim`.
        pretrain_size: Height and width of the map at pre-training, a number or a pair.
        pool_ratio: The map's size over that of the pooled map, along each axis (rounded down, at least one token).
        window: Height and width of the local window, odd.
        qkv_bias: Whether the projections to q, k and v have a bias.
        bias_size: See `ContinuousPositionBias`.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout of the output.

    Shape: [B, H, W, C] -> [B, H, W, C], any H and W.

    Raises:
        ValueError: `num_heads` does not divide `dim`, a size, ratio or rate is out of range, or the input is no such
            map.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        pretrain_size: int | tuple[int, int] = 56,
        pool_ratio: int = 8,
        window: int = 3,
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
        if window < 1 or window % 2 == 0:
            raise ValueError(f'window: expected an odd number, got {window}')
        self.dim = dim
        self.num_heads = num_heads
        self.pool_ratio = pool_ratio
        self.window = window
        head_dim, neighbours = dim // num_heads, window * window

        self.temperature = nn.Parameter(torch.empty(num_heads, 1, 1, **dd))
        self.query_embedding = nn.Parameter(torch.empty(num_heads, 1, head_dim, **dd))
        self.relative_pos_bias_local = nn.Parameter(torch.empty(num_heads, neighbours, **dd))
        self.learnable_tokens = nn.Parameter(torch.empty(num_heads, head_dim, neighbours, **dd))
        self.learnable_bias = nn.Parameter(torch.empty(num_heads, 1, neighbours, **dd))
        self.q = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias, **dd)
        self.sr = nn.Conv2d(dim, dim, 1, **dd)
        self.norm = nn.LayerNorm(dim, eps=1e-5, **dd)
        self.cpb = ContinuousPositionBias(num_heads, pretrain_size, pool_ratio, bias_size=bias_size, **dd)
        self.attn_drop = make_dropout('attn_drop', attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = make_dropout('proj_drop', proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise what is this module's own: temperature, embedding, biases and tokens."""
        init_temperature(self.temperature)
        trunc_normal_(self.query_embedding, std=0.02)
        trunc_normal_(self.relative_pos_bias_local, std=0.0004)
        trunc_normal_(self.learnable_tokens, std=0.02)
        nn.init.zeros_(self.learnable_bias)

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, self.dim)
        size = x.shape[1], x.shape[2]
        pool = F.gelu(self.sr(x.permute(0, 3, 1, 2)))
        pool = F.adaptive_avg_pool2d(pool, pooled_size(size, self.pool_ratio)).permute(0, 2, 3, 1)
        out = aggregated_attention(
            self.q(x),
            self.kv(x),
            self.kv(self.norm(pool)),
            self.temperature,
            self.query_embedding,
            self.relative_pos_bias_local,
            self.cpb(size),
            self.learnable_tokens,
            self.learnable_bias,
            num_heads=self.num_heads,
            window=(self.window, self.window),
            dropout=self.attn_drop.p if self.attn_drop.training else 0.0,
        )
        return self.proj_drop(self.proj(out))


def init_temperature(temperature: Tensor) -> None:
    """The value whose softplus is 1 / 0.24, as in the official code."""
    nn.init.constant_(temperature, math.log(math.expm1(1 / 0.24)))
