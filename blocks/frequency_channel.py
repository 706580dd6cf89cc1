"""Frequency channel attention: squeeze and excitation that sees frequencies of channels, not only their means.

Papers:
- `FcaNet: Frequency Channel Attention Networks` - https://arxiv.org/abs/2012.11879
"""

import math

import torch
from torch import Tensor, nn

from attnzoo.kernels import channel_gate

from ._common import check_map
from ._gates import reduced_channels

# Rows and columns of the frequencies of a 7 x 7 map, as the authors rank them: by the accuracy that each alone gave
# ('top', 'bot'), and from the lowest ('low').
_FREQUENCIES = {
    'top': (
        (0, 0, 6, 0, 0, 1, 1, 4, 5, 1, 3, 0, 0, 0, 3, 2, 4, 6, 3, 5, 5, 2, 6, 5, 5, 3, 3, 4, 2, 2, 6, 1),
        (0, 1, 0, 5, 2, 0, 2, 0, 0, 6, 0, 4, 6, 3, 5, 2, 6, 3, 3, 3, 5, 1, 1, 2, 4, 2, 1, 1, 3, 0, 5, 3),
    ),
    'low': (
        (0, 0, 1, 1, 0, 2, 2, 1, 2, 0, 3, 4, 0, 1, 3, 0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 6, 1, 2, 3, 4),
        (0, 1, 0, 1, 2, 0, 1, 2, 2, 3, 0, 0, 4, 3, 1, 5, 4, 3, 2, 1, 0, 6, 5, 4, 3, 2, 1, 0, 6, 5, 4, 3),
    ),
    'bot': (
        (6, 1, 3, 3, 2, 4, 1, 2, 4, 4, 5, 1, 4, 6, 2, 5, 6, 1, 6, 2, 2, 4, 3, 3, 5, 5, 6, 2, 5, 5, 3, 6),
        (6, 4, 4, 6, 6, 3, 1, 4, 4, 5, 6, 5, 2, 2, 5, 1, 4, 3, 5, 0, 3, 1, 1, 2, 4, 2, 1, 1, 5, 3, 3, 3),
    ),
}
_COUNTS = (1, 2, 4, 8, 16, 32)
_SPACE = 7  # rows and columns of the map that the frequencies are ranked for


class FrequencyFilters(nn.Module):
    """Filters [C, h, w] of the discrete cosine transform: each frequency has as many channels as the others."""

    weight: Tensor

    def __init__(self, channels: int, height: int, width: int, frequencies: str, device=None, dtype=None):
        super().__init__()
        self.frequencies = frequencies
        self.register_buffer('weight', torch.empty(channels, height, width, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make the filters."""
        channels, height, width = self.weight.shape
        count = int(self.frequencies[3:])
        lines = [
            cosines(length)[torch.tensor(ranked[:count]) * (length // _SPACE)]
            for ranked, length in zip(_FREQUENCIES[self.frequencies[:3]], (height, width), strict=True)
        ]
        filters = lines[0].unsqueeze(2) * lines[1].unsqueeze(1)  # [count, height, width]
        with torch.no_grad():
            self.weight.copy_(filters.repeat_interleave(channels // count, 0))


def cosines(length: int) -> Tensor:
    """The orthonormal discrete cosine transform of a line: frequencies times positions."""
    frequency = torch.arange(length, dtype=torch.float64).unsqueeze(1)
    position = torch.arange(length, dtype=torch.float64) + 0.5
    waves = torch.cos(math.pi * frequency * position / length) * math.sqrt(2 / length)
    waves[0] /= math.sqrt(2)
    return waves


class FrequencyChannelAttention(nn.Module):
    """x * sigmoid(fc2(relu(fc1(sums of channels times their filters)))).

    Channels come in groups of one frequency each. Arguments behind the first, parameters, the buffer of filters and
    values are the authors' (`MultiSpectralAttentionLayer`).

    Args:
        channels: Channels of input and output, C.
        dct_h: Height of the filters, at least 7. Maps of another size are first averaged to it, or repeated.
        dct_w: Width of the filters, at least 7.
        reduction: C over the hidden channels.
        freq_sel_method: Which frequencies: 'top', 'low' or 'bot' and their number, 1, 2, 4, 8, 16 or 32, which divides
            C. They are those of a 7 x 7 map, scaled to the size of the filters.

    Shape: [B, C, H, W] -> [B, C, H, W], of the input's memory format.

    Raises:
        ValueError: The frequencies are unknown or do not divide the channels, the filters are too small, the reduction
            leaves no channels, or the input is no such map.
    """

    def __init__(
        self,
        channels: int,
        dct_h: int = 7,
        dct_w: int = 7,
        reduction: int = 16,
        freq_sel_method: str = 'top16',
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        kind, count = freq_sel_method[:3], freq_sel_method[3:]
        if kind not in _FREQUENCIES or count not in map(str, _COUNTS):
            raise ValueError(
                f"freq_sel_method: expected 'top', 'low' or 'bot' and one of {', '.join(map(str, _COUNTS))}, "
                f'got {freq_sel_method!r}'
            )
        if channels % int(count):
            raise ValueError(
                f'freq_sel_method: expected a number of frequencies that divides {channels} channels, '
                f'got {freq_sel_method!r}'
            )
        for name, size in (('dct_h', dct_h), ('dct_w', dct_w)):
            if size < _SPACE:
                raise ValueError(f'{name}: expected at least {_SPACE}, got {size}')
        hidden = reduced_channels('reduction', channels, reduction)
        self.channels = channels
        self.dct_layer = FrequencyFilters(channels, dct_h, dct_w, freq_sel_method, **dd)
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden, bias=False, **dd),
            nn.ReLU(),
            nn.Linear(hidden, channels, bias=False, **dd),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor, residual: Tensor | None = None, activation: str | None = None) -> Tensor:
        """The gated map or, with a residual or an activation such as 'relu', activation(gated map + residual)."""
        check_map(x, self.channels, channels_first=True)
        fc1: Tensor = self.fc[0].weight  # type: ignore[assignment]
        fc2: Tensor = self.fc[2].weight  # type: ignore[assignment]
        return channel_gate(
            x,
            fc1,
            fc2,
            filters=self.dct_layer.weight,
            residual=residual,
            activation=activation,
        )
