"""Efficient local attention: gates of rows and of columns, from strips of each channel.

Papers:
- `ELA: Efficient Local Attention for Deep Convolutional Neural Networks` - https://arxiv.org/abs/2403.01123
"""

from torch import Tensor, nn

from attnzoo.kernels import ela_gate

from ._common import check_map
from ._gates import check_kernel

# The paper's variants: kernel, channels of a group of the convolution, groups of the norm.
VARIANTS = {'T': (5, 1, 32), 'B': (7, 1, 16), 'S': (5, 8, 16), 'L': (7, 8, 16)}


class EfficientLocalAttention(nn.Module):
    """x * sigmoid(norm(conv(means of rows))) * sigmoid(norm(conv(means of columns))).

    Args:
        channels: Channels of input and output, C.
        variant: The paper's 'T' (kernel 5), 'B' (7), 'S' (5) or 'L' (7): the first two convolve each channel alone,
            the others groups of 8; norms have 32 groups in 'T', else 16. What follows changes it.
        kernel_size: Positions under the convolution, odd.
        groups: Groups of channels of the convolution.
        num_groups: Groups of channels of the norm.
        separate: Give columns a convolution and a norm of their own, as the paper's formula allows; its listing has
            one of each for both.

    Shape: [B, C, H, W] -> [B, C, H, W], of the input's memory format.

    Raises:
        ValueError: The variant is unknown, the kernel is even, groups do not divide the channels, or the input is no
            such map.
    """

    def __init__(
        self,
        channels: int,
        variant: str = 'B',
        kernel_size: int | None = None,
        groups: int | None = None,
        num_groups: int | None = None,
        separate: bool = False,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f'variant: expected one of {", ".join(map(repr, VARIANTS))}, got {variant!r}')
        kernel, per_group, norm_groups = VARIANTS[variant]
        kernel = kernel if kernel_size is None else kernel_size
        norm_groups = norm_groups if num_groups is None else num_groups
        check_kernel('kernel_size', kernel)
        if groups is None:
            if channels % per_group:
                raise ValueError(f'variant: {variant!r} has groups of {per_group} channels, got {channels} channels')
            groups = channels // per_group
        for name, number in (('groups', groups), ('num_groups', norm_groups)):
            if number < 1 or channels % number:
                raise ValueError(f'{name}: expected a divisor of {channels} channels, got {number}')
        self.channels = channels
        self.num_groups = norm_groups

        def conv() -> nn.Conv1d:
            return nn.Conv1d(channels, channels, kernel, padding=kernel // 2, groups=groups, bias=False, **dd)

        self.conv = conv()
        self.gn = nn.GroupNorm(norm_groups, channels, **dd)
        self.conv_w = conv() if separate else None
        self.gn_w = nn.GroupNorm(norm_groups, channels, **dd) if separate else None

    def forward(self, x: Tensor, residual: Tensor | None = None, activation: str | None = None) -> Tensor:
        """The gated map or, with a residual or an activation such as 'relu', activation(gated map + residual)."""
        check_map(x, self.channels, channels_first=True)
        conv_w, norm_w, bias_w = self.conv.weight, self.gn.weight, self.gn.bias
        if self.conv_w is not None and self.gn_w is not None:
            conv_w, norm_w, bias_w = self.conv_w.weight, self.gn_w.weight, self.gn_w.bias
        return ela_gate(
            x,
            self.conv.weight,
            conv_w,
            self.num_groups,
            self.gn.weight,
            norm_w,
            self.gn.bias,
            bias_w,
            self.gn.eps,
            residual,
            activation,
        )
