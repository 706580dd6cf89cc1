"""What ops check of their arguments: each says in one line what it expects, and what it got."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def check_map(name: str, x: Tensor, channels_first: bool = False, holds: str = 'channels') -> None:
    """Raises a ValueError unless x is a floating-point map.

    Args:
        name: The argument's name.
        x: The argument.
        channels_first: Expect [B, C, H, W], not [B, H, W, C].
        holds: What its channels are, in words.
    """
    if x.ndim != 4:
        axes = ['batch', 'height', 'width']
        axes.insert(1 if channels_first else 3, holds)
        raise ValueError(f'{name}: expected a map [{", ".join(axes)}], got shape {tuple(x.shape)}')
    if not x.is_floating_point():
        raise ValueError(f'{name}: expected a floating-point dtype, got {x.dtype}')


def check_shape(name: str, x: Tensor | None, shape: Iterable[int], axes: str) -> None:
    """Raises a ValueError unless x, where it is given, has this shape, whose axes are named in words."""
    shape = tuple(shape)
    if x is not None and tuple(x.shape) != shape:
        raise ValueError(f'{name}: expected [{axes}] = {list(shape)}, got shape {tuple(x.shape)}')


def check_dtypes(maps: Mapping[str, Tensor | None]) -> None:
    """Raises a ValueError unless all that are given have the dtype of the first."""
    (first, expected), *others = maps.items()
    for name, x in others:
        if x is not None and expected is not None and x.dtype != expected.dtype:
            raise ValueError(f'{name}: expected the dtype of {first}, {expected.dtype}, got {x.dtype}')


def check_devices(first: str, x: Tensor, others: Mapping[str, Tensor | None]) -> None:
    """Raises a ValueError unless all others that are given are on the device of x, the argument `first`."""
    for name, other in others.items():
        if other is not None and other.device != x.device:
            raise ValueError(f'{name}: expected the device of {first}, {x.device}, got {other.device}')


def check_heads(name: str, x: Tensor, num_heads: int) -> None:
    """Raises a ValueError unless that many heads divide the channels of x [..., C]."""
    if num_heads < 1 or x.shape[-1] == 0 or x.shape[-1] % num_heads:
        raise ValueError(f'num_heads: expected a divisor of the {x.shape[-1]} channels of {name}, got {num_heads}')


def check_odd(name: str, size: Iterable[int]) -> None:
    """Raises a ValueError unless a kernel has an odd height and width."""
    if not all(n > 0 and n % 2 == 1 for n in size):
        raise ValueError(f'{name}: expected a kernel of odd height and width, got {tuple(size)}')


def check_dropout(dropout: float) -> None:
    """Raises a ValueError unless it is a rate."""
    if not 0.0 <= dropout <= 1.0:
        raise ValueError(f'dropout: expected a rate from 0 to 1, got {dropout}')


def check_choice(name: str, value: str, choices: tuple[str, str]) -> None:
    """Raises a ValueError unless it is one of two words."""
    if value not in choices:
        raise ValueError(f'{name}: expected {choices[0]!r} or {choices[1]!r}, got {value!r}')


def check_pair_bias(bias: Tensor | None, index: Tensor | None, num_heads: int, tokens: int) -> None:
    """Raises a ValueError unless a bias is dense, [num_heads, tokens, tokens], or a table with an index of its rows."""
    if index is not None:
        if bias is None or bias.ndim != 2 or bias.shape[1] != num_heads:
            got = None if bias is None else tuple(bias.shape)
            raise ValueError(f'bias: expected with a bias_index a table [rows, num_heads = {num_heads}], got {got}')
        if index.shape != (tokens, tokens) or index.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f'bias_index: expected int64 or int32 of the shape {(tokens, tokens)}, window tokens squared, '
                f'got {index.dtype} {tuple(index.shape)}'
            )
    elif bias is not None and bias.shape != (num_heads, tokens, tokens):
        raise ValueError(
            f'bias: expected [num_heads, tokens, tokens] = {(num_heads, tokens, tokens)}, got {tuple(bias.shape)}'
        )
