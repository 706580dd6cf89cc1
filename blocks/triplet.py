"""Triplet attention: gates of each pair of a map's axes.

Papers:
- `Rotate to Attend: Convolutional Triplet Attention Module` - https://arxiv.org/abs/2010.03045
"""

from torch import Tensor, nn

from attnzoo.kernels import triplet_gate

from ._common import check_map
from ._gates import PooledConv


class AxisGate(nn.Module):
    """The convolution that makes gates of the maximum and mean over one axis."""

    def __init__(self, kernel_size: int, device=None, dtype=None):
        super().__init__()
        self.conv = PooledConv(kernel_size, device=device, dtype=dtype)


class TripletAttention(nn.Module):
    """The mean of a map under three gates: of channels and columns, of rows and channels, of rows and columns.

    Parameters have the official names, those of the module in the root of the authors' repository. The copy that their
    ImageNet models use has others: `ChannelGateH.spatial`, `ChannelGateW.spatial` and `SpatialGate.spatial` are here
    `cw.conv`, `hc.conv` and `hw.conv`.

    Args:
        channels: Channels of input and output, C; no parameter depends on them.
        no_spatial: Leave out the gate of rows and columns.
        kernel_size: Height and width of the convolutions, odd.

    Shape: [B, C, H, W] -> [B, C, H, W], of the input's memory format.

    Raises:
        ValueError: The kernel is even, or the input is no such map.
    """

    def __init__(self, channels: int, no_spatial: bool = False, kernel_size: int = 7, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.channels = channels
        self.cw = AxisGate(kernel_size, **dd)
        self.hc = AxisGate(kernel_size, **dd)
        self.hw = None if no_spatial else AxisGate(kernel_size, **dd)

    def forward(self, x: Tensor, residual: Tensor | None = None, activation: str | None = None) -> Tensor:
        """The gated map or, with a residual or an activation such as 'relu', activation(gated map + residual)."""
        check_map(x, self.channels, channels_first=True)
        cw = self.cw.conv
        hc = self.hc.conv
        weights: list[Tensor] = [cw.conv.weight, hc.conv.weight]
        norm_weights: list[Tensor] = [cw.bn.weight, hc.bn.weight]
        norm_biases: list[Tensor] = [cw.bn.bias, hc.bn.bias]
        statistics = [cw.statistics(), hc.statistics()]
        momentum = cw.count(x)
        hc.count(x)
        if self.hw is not None:
            hw = self.hw.conv
            weights.append(hw.conv.weight)
            norm_weights.append(hw.bn.weight)
            norm_biases.append(hw.bn.bias)
            statistics.append(hw.statistics())
            hw.count(x)
        return triplet_gate(
            x,
            weights,
            norm_weights,
            norm_biases,
            [mean for mean, _ in statistics],
            [var for _, var in statistics],
            cw.bn.training,
            momentum,
            cw.bn.eps,
            residual,
            activation,
        )
