"""What several blocks need: checks of their arguments and input, dropout, and padding."""

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn
from torch.nn import functional as F

from attnzoo.kernels._fx import fx_leaf, is_symbolic


def check_heads(dim: int, num_heads: int) -> None:
    """Raises a ValueError unless `num_heads` heads divide `dim` channels."""
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f'num_heads: expected a divisor of {dim} channels, got {num_heads}')


def window_size(name: str, size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a window that is given as a number or a pair; a ValueError names the argument."""
    pair = to_2tuple(size)
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise ValueError(f'{name}: expected a positive number of tokens or (height, width), got {size!r}')
    return pair


def make_dropout(name: str, rate: float) -> nn.Dropout:
    """A dropout whose rate is the argument of that name."""
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f'{name}: expected a rate from 0 to 1, got {rate}')
    return nn.Dropout(float(rate))


@fx_leaf  # reason: it looks at the shape
def check_map(x: Tensor, channels: int, channels_first: bool = False) -> None:
    """Raises a ValueError unless x is a map [B, H, W, C], or [B, C, H, W], of that many channels, and not empty."""
    if not torch.jit.is_scripting():
        axis, other, order = (1, 3, '0, 3, 1, 2') if channels_first else (3, 1, '0, 2, 3, 1')
        if x.ndim == 4 and x.shape[axis] == channels and x.shape[2] > 0 and x.shape[other] > 0:
            return
        hint = ''
        if x.ndim == 4 and x.shape[axis] == channels:
            hint = ': it is empty, height and width are at least 1'
        elif x.ndim == 4 and x.shape[other] == channels:
            hint = f': take x.permute({order})'
        elif x.ndim == 3 and x.shape[2] == channels:
            hint = ': tokens become a map by x.unflatten(1, (height, width))'
            hint += f'.permute({order})' if channels_first else ''
        layout = ['batch', 'height', 'width']
        layout.insert(axis, f'{channels} channels')
        raise ValueError(f'x: expected a map [{", ".join(layout)}], got shape {tuple(x.shape)}{hint}')


@fx_leaf  # reason: it looks at sizes
def check_size(x: Tensor, least: int) -> None:
    """Raises a ValueError unless height and width of x [B, C, H, W] are no less than that."""
    if not torch.jit.is_scripting():
        height, width = x.shape[2:]
        if height < least or width < least:
            raise ValueError(f'x: expected a height and width of at least {least}, got {height} x {width}')


@fx_leaf  # reason: it looks at sizes, so that a map that needs no padding is not copied
def pad_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Pad a map [B, H, W, C] with zeros at the bottom and right to `size`."""
    bottom, right = size[0] - x.shape[1], size[1] - x.shape[2]
    if not is_symbolic(bottom) and not is_symbolic(right) and bottom == 0 and right == 0:
        return x
    return F.pad(x, (0, 0, 0, right, 0, bottom))


@fx_leaf  # reason: it looks at sizes
def crop_to(x: Tensor, height: int, width: int) -> Tensor:
    """The upper left part of a map [B, H, W, C]."""
    if is_symbolic(height) or is_symbolic(width):
        # A slice would have the exporter ask whether it ends within the map, which it cannot prove of padding.
        rows = torch.arange(height, device=x.device)
        columns = torch.arange(width, device=x.device)
        return x.index_select(1, rows).index_select(2, columns)
    return x[:, :height, :width]
