"""Efficient channel attention: a gate for each channel, which a convolution along the channels makes of their means.

Papers:
- `ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks` - https://arxiv.org/abs/1910.03151
"""

import math

from torch import Tensor, nn

from attnzoo.kernels import channel_gate
from attnzoo.kernels._gates import check_activation

from ._common import check_map
from ._gates import check_kernel


class EfficientChannelAttention(nn.Module):
    """x * gate(conv(means of channels)).

    Parameters have the official names, which are timm's (`EcaModule`).

    Args:
        channels: Channels of input and output, C.
        kernel_size: Channels that a gate is made of, odd. None: the odd number at or above
            (log2(C) + beta) / gamma rounded down, at least 3 (as in timm; the authors go down to 1).
        gamma: See `kernel_size`.
        beta: See `kernel_size`.
        gate: What makes gates of scores, such as 'sigmoid' or 'hard_sigmoid'.

    Shape: [B, C, H, W] -> [B, C, H, W], of the input's memory format.

    Raises:
        ValueError: The kernel is even, the gate is unknown, or the input is no such map.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | None = None,
        gamma: float = 2.0,
        beta: float = 1.0,
        gate: str = 'sigmoid',
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        if kernel_size is None:
            size = int(abs(math.log2(channels) + beta) / gamma)
            kernel_size = max(size + 1 - size % 2, 3)
        check_kernel('kernel_size', kernel_size)
        check_activation('gate', gate)
        self.channels = channels
        self.gate = gate
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False, **dd)

    def forward(self, x: Tensor, residual: Tensor | None = None, activation: str | None = None) -> Tensor:
        """The gated map or, with a residual or an activation such as 'relu', activation(gated map + residual)."""
        check_map(x, self.channels, channels_first=True)
        return channel_gate(x, conv_weight=self.conv.weight, gate=self.gate, residual=residual, activation=activation)
