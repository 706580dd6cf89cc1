"""Global attention with local enhancement, as in the last stage of BiFormer.

Papers:
- `BiFormer: Vision Transformer with Bi-Level Routing Attention` - https://arxiv.org/abs/2303.08810
"""

import torch
from torch import Tensor, nn

from attnzoo.kernels import depthwise_conv, full_attention

from ._common import check_heads, check_map, make_dropout


class GlobalAttention(nn.Module):
    """Attention of every token of a channels-last map to every other, plus a depthwise convolution (LePE).

    Args:
        dim: Channels of input and output, C.
        num_heads: Heads; they divide `dim`.
        qkv_bias: Whether the projection to q, k and v has a bias.
        side_kernel: Kernel of the depthwise convolution that is added before the output projection, 0 for none.
        lepe_on_value: Convolve the values instead of the attention's input (BiFormer convolves the input, its
            `biformer_stl_nchw` the values).
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout of the output.

    Shape: [B, H, W, C] -> [B, H, W, C], any H and W.

    Raises:
        ValueError: `num_heads` does not divide `dim`, a rate is out of range, or the input is no such map.
    """

    lepe_on_value: torch.jit.Final[bool]

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        side_kernel: int = 5,
        lepe_on_value: bool = False,
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
        self.lepe_on_value = lepe_on_value
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.lepe = (
            nn.Conv2d(dim, dim, side_kernel, padding=side_kernel // 2, groups=dim, **dd) if side_kernel else None
        )
        self.attn_drop = make_dropout('attn_drop', attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = make_dropout('proj_drop', proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, self.dim)
        B, H, W, C = x.shape
        qkv = self.qkv(x)
        q, k, v = qkv.reshape(B, H * W, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        out = full_attention(q, k, v, dropout=self.attn_drop.p if self.attn_drop.training else 0.0)
        out = out.transpose(1, 2).reshape(B, H, W, C)
        if self.lepe is not None:
            local = qkv[..., 2 * C :] if self.lepe_on_value else x
            out = out + depthwise_conv(local, self.lepe.weight, self.lepe.bias)
        return self.proj_drop(self.proj(out))
