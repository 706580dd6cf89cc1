"""Tables that follow from a module's weights alone, kept for inference while the weights stay as they are."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from attnzoo.kernels._dispatch import is_plain_eager
from attnzoo.kernels._kept import is_counted


class TableModule(nn.Module):
    """A module that computes tables from its weights and keeps the last one.

    Where a subclass would return `self.make_table(size)`, it returns `self.keep(self.make_table, size)` unless
    TorchScript looks on.

    A table is kept only while gradients are off and nothing looks on, and it is found again only while every parameter
    and buffer has the version, place, dtype and device that it was made from, under the same autocast. PyTorch counts
    no version where a tensor is written to through `.data`: `train()` and `eval()` therefore start afresh.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: Any = None

    def keep(self, make: Callable[[Any], Tensor], key: Any) -> Tensor:
        """What `make(key)` gives from this module's weights, for a key that can be compared. Nobody may write to it."""
        if torch.is_grad_enabled() or _is_traced(key):
            return make(key)
        sources = [*self.parameters(), *self.buffers()]
        if not is_plain_eager(*sources) or not all(is_counted(x) for x in sources):
            return make(key)
        stamp = (key, _autocast(sources[0]), *((x._version, x.data_ptr(), x.dtype, x.device) for x in sources))
        kept = self._kept  # looked at once: another thread may replace it
        if kept is None or kept[0] != stamp:
            # Beside the table, its sources: while they are held, no other tensor gets their place in memory.
            kept = self._kept = (stamp, make(key), [x.detach() for x in sources])
        return kept[1]

    def train(self, mode: bool = True):
        self._kept = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_kept': None}  # copies and files start without


def _is_traced(key: Any) -> bool:
    """Whether torch.fx makes a graph, in which sizes are no numbers."""
    return any(isinstance(part, Proxy) for part in (key if isinstance(key, tuple) else (key,)))


def _autocast(x: Tensor) -> torch.dtype | None:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
