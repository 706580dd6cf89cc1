"""The convolutional block attention module: a gate of channels, then a gate of positions.

Papers:
- `CBAM: Convolutional Block Attention Module` - https://arxiv.org/abs/1807.06521
"""

from collections.abc import Sequence

from torch import Tensor, nn

from attnzoo.kernels import cbam_gate
from attnzoo.kernels.cbam_gate.op import POOLS

from ._common import check_map
from ._gates import PooledConv, reduced_channels


class ChannelGate(nn.Module):
    """The MLP that makes gates of pooled channels."""

    def __init__(self, channels: int, hidden: int, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        layers = [nn.Linear(channels, hidden, **dd), nn.ReLU(), nn.Linear(hidden, channels, **dd)]
        self.mlp = nn.Sequential(nn.Flatten(), *layers)

    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Those of both layers, then the biases."""
        fc1, fc2 = self.mlp[1], self.mlp[3]
        return fc1.weight, fc2.weight, fc1.bias, fc2.bias  # type: ignore[return-value]


class SpatialGate(nn.Module):
    """The convolution that makes gates of the maximum and mean of the channels."""

    def __init__(self, kernel_size: int, device=None, dtype=None):
        super().__init__()
        self.spatial = PooledConv(kernel_size, device=device, dtype=dtype)


class CBAM(nn.Module):
    """Gates of channels from their pools, then gates of positions from maximum and mean of the gated channels.

    Arguments behind the first, parameters and values are the authors'.

    Args:
        channels: Channels of input and output, C.
        reduction_ratio: C over the hidden channels of the MLP.
        pool_types: Pools of a channel, of which the MLP's outputs are added: some of 'avg', 'max', 'lp' and 'lse'.
        no_spatial: Leave out the gate of positions.
        kernel_size: Height and width of the convolution of positions, odd.

    Shape: [B, C, H, W] -> [B, C, H, W], of the input's memory format.

    Raises:
        ValueError: The ratio leaves no channels, the kernel is even, a pool is unknown, or the input is no such map.
    """

    def __init__(
        self,
        channels: int,
        reduction_ratio: int = 16,
        pool_types: Sequence[str] = ('avg', 'max'),
        no_spatial: bool = False,
        kernel_size: int = 7,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        if not pool_types or any(pool not in POOLS for pool in pool_types):
            raise ValueError(f'pool_types: expected some of {", ".join(map(repr, POOLS))}, got {pool_types!r}')
        self.channels = channels
        self.pool_types = list(pool_types)
        hidden = reduced_channels('reduction_ratio', channels, reduction_ratio)
        self.ChannelGate = ChannelGate(channels, hidden, **dd)
        self.SpatialGate = None if no_spatial else SpatialGate(kernel_size, **dd)

    def forward(self, x: Tensor, residual: Tensor | None = None, activation: str | None = None) -> Tensor:
        """The gated map or, with a residual or an activation such as 'relu', activation(gated map + residual)."""
        check_map(x, self.channels, channels_first=True)
        fc1_weight, fc2_weight, fc1_bias, fc2_bias = self.ChannelGate.weights()
        if self.SpatialGate is None:
            return cbam_gate(
                x,
                fc1_weight,
                fc2_weight,
                fc1_bias,
                fc2_bias,
                pools=self.pool_types,
                residual=residual,
                activation=activation,
            )
        spatial = self.SpatialGate.spatial
        return cbam_gate(
            x,
            fc1_weight,
            fc2_weight,
            fc1_bias,
            fc2_bias,
            spatial.conv.weight,
            spatial.bn.weight,
            spatial.bn.bias,
            spatial.bn.running_mean,
            spatial.bn.running_var,
            spatial.bn.training,
            spatial.count(x),
            spatial.bn.eps,
            self.pool_types,
            residual,
            activation,
        )
