"""Conditional position encoding.

Papers:
- `Conditional Positional Encodings for Vision Transformers` - https://arxiv.org/abs/2102.10882
"""

from torch import Tensor, nn

from attnzoo.kernels import depthwise_conv

from ._common import check_map


class ConditionalPositionEncoding(nn.Module):
    """A depthwise convolution with a shortcut: tokens learn where they are from the zeros around the map.

    Parameters have the names of the official DaViT and of timm's.

    Args:
        dim: Channels of input and output, C.
        kernel: Size of the kernel, odd.

    Shape: [B, H, W, C] -> [B, H, W, C], any H and W.

    Raises:
        ValueError: `kernel` is not an odd number, or the input is no such map.
    """

    def __init__(self, dim: int, kernel: int = 3, device=None, dtype=None):
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f'kernel: expected an odd number, got {kernel}')
        self.dim = dim
        self.proj = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, self.dim)
        return depthwise_conv(x, self.proj.weight, self.proj.bias, residual=True)
