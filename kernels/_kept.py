"""What follows from some tensors alone, kept while they stay as they are."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

T = TypeVar('T')

_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def kept(sources: tuple[Tensor | None, ...], key: Any, make: Callable[[], T]) -> T:
    """What `make()` gives, or gave when the sources had the versions, places, dtypes and devices that they have now.

    It lives as long as the first source does. Nobody may write to it.
    """
    stamp = [key]
    for x in sources:
        if x is not None:
            if not is_counted(x):
                return make()
            stamp += x._version, x.data_ptr(), x.dtype, x.device
    first = sources[0]
    found = _kept.get(first)
    if found is None or found[0] != stamp:
        # Beside it, the other sources: while they are held, no other tensor gets their place in memory.
        found = _kept[first] = (stamp, make(), sources[1:])
    return found[1]


def is_counted(x: Tensor) -> bool:
    """Whether PyTorch counts the writes to a tensor, and this call is not recorded to be repeated after them."""
    return not (x.is_meta or x.is_inference() or (x.is_cuda and torch.cuda.is_current_stream_capturing()))
