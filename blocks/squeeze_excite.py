"""Squeeze and excitation: a gate for each channel, which an MLP makes of the means of all.

Papers:
- `Squeeze-and-Excitation Networks` - https://arxiv.org/abs/1709.01507
"""

from timm.layers import create_act_layer, make_divisible
from torch import Tensor, nn

from attnzoo.kernels import channel_gate
from attnzoo.kernels._gates import gate_map

from ._common import check_map
from ._gates import activation_name


class SqueezeExcite(nn.Module):
    """x * gate(fc2(act(norm(fc1(mean of each channel))))).

    Arguments, parameters and values are those of timm's `SEModule`. With a norm, or an activation that `channel_gate`
    does not know, the layers run one by one.

    Args:
        channels: Channels of input and output, C.
        rd_ratio: Hidden channels over C.
        rd_channels: Hidden channels, in place of the ratio.
        rd_divisor: Hidden channels are rounded to a multiple of it, and at least that.
        add_maxpool: Take the mean of each channel's mean and maximum.
        bias: Whether the layers have biases.
        act_layer: Activation behind the first layer, a name or class as timm takes them.
        norm_layer: Norm in front of it, called with the hidden channels; None for none.
        gate_layer: What makes gates of scores, a name or class.

    Shape: [B, C, H, W] -> [B, C, H, W], of the input's memory format.

    Raises:
        ValueError: An argument leaves no hidden channels, or the input is no such map.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        add_maxpool: bool = False,
        bias: bool = True,
        act_layer: str | type[nn.Module] = nn.ReLU,
        norm_layer: type[nn.Module] | None = None,
        gate_layer: str | type[nn.Module] = 'sigmoid',
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        if rd_divisor < 1:
            raise ValueError(f'rd_divisor: expected at least 1, got {rd_divisor}')
        if rd_channels is None:
            if rd_ratio <= 0:
                raise ValueError(f'rd_ratio: expected a positive share of {channels} channels, got {rd_ratio}')
            rd_channels = make_divisible(channels * rd_ratio, rd_divisor, round_limit=0.0)
        elif rd_channels < 1:
            raise ValueError(f'rd_channels: expected at least 1, got {rd_channels}')
        self.channels = channels
        self.add_maxpool = add_maxpool
        self.fc1 = nn.Conv2d(channels, rd_channels, 1, bias=bias, **dd)
        self.bn = nn.Identity() if norm_layer is None else norm_layer(rd_channels, **dd)
        self.act = create_act_layer(act_layer)
        self.fc2 = nn.Conv2d(rd_channels, channels, 1, bias=bias, **dd)
        self.gate = create_act_layer(gate_layer)
        names = activation_name(act_layer), activation_name(gate_layer)
        self.act_name, self.gate_name = (name or '' for name in names)
        self.in_one = norm_layer is None and None not in names

    def forward(self, x: Tensor, residual: Tensor | None = None, activation: str | None = None) -> Tensor:
        """The gated map or, with a residual or an activation such as 'relu', activation(gated map + residual)."""
        check_map(x, self.channels, channels_first=True)
        if self.in_one:
            return channel_gate(
                x,
                self.fc1.weight.flatten(1),
                self.fc2.weight.flatten(1),
                self.fc1.bias,
                self.fc2.bias,
                add_max=self.add_maxpool,
                act=self.act_name,
                gate=self.gate_name,
                residual=residual,
                activation=activation,
            )
        pooled = x.mean((2, 3), keepdim=True)
        if self.add_maxpool:
            pooled = 0.5 * pooled + 0.5 * x.amax((2, 3), keepdim=True)
        hidden = self.act(self.bn(self.fc1(pooled)))
        return gate_map(x, self.gate(self.fc2(hidden)), residual, activation)
