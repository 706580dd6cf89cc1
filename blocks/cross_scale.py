"""Cross-scale embedding: patches of several sizes around the same centres.

Papers:
- `CrossFormer: A Versatile Vision Transformer Hinging on Cross-scale Attention` - https://arxiv.org/abs/2108.00154
"""

import torch
from torch import Tensor, nn

from attnzoo.kernels import patch_conv

from ._common import check_map, check_size


class CrossScaleEmbedding(nn.Module):
    """Cross-scale embedding layer (CEL): one stride, several kernels, whose outputs are concatenated.

    The smallest kernel makes half of the channels, each further one half of what is left, the last all that is left.

    Args:
        dim: Channels of the input, C.
        dim_out: Channels of the output; 2 ** (len(kernels) - 1) divides them.
        kernels: Sizes of the kernels, ascending; each exceeds the stride by zero or an even number.
        stride: Distance of the patches.
        norm_first: Layer norm on the input (between stages) instead of on the output (of the first embedding).
        channels_first: Take and return maps [B, C, H, W].
        min_size: The least H and W, where layers behind it need more than one patch; None: the stride.

    Shape: [B, H, W, C] -> [B, H // stride, W // stride, dim_out].

    Raises:
        ValueError: `kernels` do not fit the stride, `dim_out` cannot be shared among them, or the input is no such map
            or too small.
    """

    norm_first: torch.jit.Final[bool]
    channels_first: torch.jit.Final[bool]

    def __init__(
        self,
        dim: int,
        dim_out: int,
        kernels: tuple[int, ...] = (4, 8, 16, 32),
        stride: int = 4,
        norm_first: bool = False,
        channels_first: bool = False,
        min_size: int | None = None,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        if not kernels or any(kernel < stride or (kernel - stride) % 2 for kernel in kernels):
            raise ValueError(f'kernels: expected sizes of {stride} (the stride) plus an even number, got {kernels}')
        shares = [2 ** min(i + 1, len(kernels) - 1) for i in range(len(kernels))]
        if dim_out % shares[-1]:
            raise ValueError(f'dim_out: expected a multiple of {shares[-1]} for {len(kernels)} kernels, got {dim_out}')
        self.dim = dim
        self.norm_first = norm_first
        self.channels_first = channels_first
        self.min_size = stride if min_size is None else min_size
        self.projs = nn.ModuleList(
            PatchConv2d(dim, dim_out // share, kernel, stride, padding=(kernel - stride) // 2, **dd)
            for kernel, share in zip(kernels, shares, strict=True)
        )
        self.norm = nn.LayerNorm(dim if norm_first else dim_out, **dd)

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, self.dim, self.channels_first)
        if self.channels_first:
            x = x.permute(0, 2, 3, 1)
        if self.norm_first:
            x = self.norm(x)
        x = x.permute(0, 3, 1, 2)
        check_size(x, self.min_size)
        x = torch.cat([proj(x) for proj in self.projs], 1).permute(0, 2, 3, 1)
        if not self.norm_first:
            x = self.norm(x)
        return x.permute(0, 3, 1, 2) if self.channels_first else x


class PatchConv2d(nn.Conv2d):
    """`nn.Conv2d` through `attnzoo.kernels.patch_conv`."""

    def forward(self, x: Tensor) -> Tensor:
        return patch_conv(x, self.weight, self.bias, self.stride[0])
