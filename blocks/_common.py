"""What several blocks need: checks of their arguments, and padding."""

from timm.layers import register_notrace_function, to_2tuple
from torch import Tensor
from torch.nn import functional as F


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


@register_notrace_function  # reason: it looks at sizes, so that a map that needs no padding is not copied
def pad_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Pad a map [B, H, W, C] with zeros at the bottom and right to `size`."""
    bottom, right = size[0] - x.shape[1], size[1] - x.shape[2]
    if bottom == 0 and right == 0:
        return x
    return F.pad(x, (0, 0, 0, right, 0, bottom))
