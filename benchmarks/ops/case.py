"""What a case of the benchmark of ops is."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Function = Callable[..., Tensor]


class Case(NamedTuple):
    """Two forms of an op, and what both take."""

    ours: Function
    theirs: Function
    projected: list[Tensor]  # maps that a layer before puts out, so that autocast gives them in bf16
    others: list[Tensor]


def parameters(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Learned tensors of the size that they have after initialisation."""
    return [torch.randn(shape).mul_(shape[-1] ** -0.5 if len(shape) > 1 else 0.1) for shape in shapes]
