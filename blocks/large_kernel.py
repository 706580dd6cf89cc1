"""Large kernel attention, alone and as the attention unit of VAN.

Papers:
- `Visual Attention Network` - https://arxiv.org/abs/2202.09741
"""

from torch import Tensor, nn
from torch.nn import functional as F

from attnzoo.kernels import large_kernel_attention

from ._common import check_map


class LargeKernelAttention(nn.Module):
    """Large kernel attention (LKA): each position is multiplied, channel by channel, by what lies around it.

    A depthwise convolution, a dilated one and a 1x1 convolution take the place of one large kernel; the defaults see
    23 x 23 positions. Parameters have the official names and shapes.

    Args:
        dim: Channels of input and output, C.
        kernel: Size of the first kernel, odd.
        dilated_kernel: Size of the dilated kernel, odd.
        dilation: Its dilation.

    Shape: [B, H, W, C] -> [B, H, W, C], any H and W.

    Raises:
        ValueError: A size is out of range, or the input is no such map.
    """

    def __init__(self, dim: int, kernel: int = 5, dilated_kernel: int = 7, dilation: int = 3, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        for name, size in (('kernel', kernel), ('dilated_kernel', dilated_kernel)):
            if size < 1 or size % 2 == 0:
                raise ValueError(f'{name}: expected an odd number, got {size}')
        if dilation < 1:
            raise ValueError(f'dilation: expected at least 1, got {dilation}')
        self.dim = dim
        self.dilation = dilation
        self.conv0 = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim, **dd)
        padding = dilation * (dilated_kernel // 2)
        self.conv_spatial = nn.Conv2d(dim, dim, dilated_kernel, padding=padding, dilation=dilation, groups=dim, **dd)
        self.conv1 = nn.Conv2d(dim, dim, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, self.dim)
        return large_kernel_attention(
            x,
            self.conv0.weight,
            self.conv_spatial.weight,
            self.conv1.weight.flatten(1),
            self.conv0.bias,
            self.conv_spatial.bias,
            self.conv1.bias,
            self.dilation,
        )


class VanAttention(nn.Module):
    """The attention of a VAN block: large kernel attention between two projections, and a shortcut around all.

    Parameters have the official names and shapes.

    Args:
        dim: Channels of input and output, C.

    Shape: [B, H, W, C] -> [B, H, W, C], any H and W.

    Raises:
        ValueError: The input is no such map.
    """

    def __init__(self, dim: int, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.dim = dim
        self.proj_1 = nn.Conv2d(dim, dim, 1, **dd)
        self.spatial_gating_unit = LargeKernelAttention(dim, **dd)
        self.proj_2 = nn.Conv2d(dim, dim, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, self.dim)
        out = F.gelu(F.linear(x, self.proj_1.weight.flatten(1), self.proj_1.bias))
        return x + F.linear(self.spatial_gating_unit(out), self.proj_2.weight.flatten(1), self.proj_2.bias)
