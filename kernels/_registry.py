"""The ops that have kernels: where the benchmark, the compilation report and the tests find them.

An op joins with a line in `OPS` and a module that holds `CASES`, the shapes that it is compiled and timed at.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

OPS = {
    'window_attention': 'attnzoo.kernels.window_attention.cases',
}


@dataclass(frozen=True)
class Case:
    """An op at a published shape.

    Attributes:
        name: Where the shape is from, such as 'Swin-T stage 1'.
        shape: The shape in words, as reports print it.
        function: The op's public function.
        inputs: Arguments of the function for a batch size, device and dtype; all floating-point tensors require grad.
        floor_bytes: What forward and backward must move at least, given the inputs: each map is read and written once.
        rivals: Other ways to the same result, by name: called with the same inputs.
        all_dtypes: Whether it is compiled in float16 and float32 too, not in bfloat16 only.
        batch: Images of a timed call on a GPU, and of the report's.
        limits: The most that the report's `issue_over_bytes` may be, forward and forward+backward together; None: any.
    """

    name: str
    shape: str
    function: Callable[..., Tensor]
    inputs: Callable[[int, torch.device | str, torch.dtype], dict[str, Any]]
    floor_bytes: Callable[[dict[str, Any]], tuple[int, int]]
    rivals: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)
    all_dtypes: bool = False
    batch: int = 64
    limits: tuple[float, float] | None = None


def cases(op: str, name: str = '') -> tuple[Case, ...]:
    """The cases of an op whose names hold a text.

    Raises:
        ValueError: There is no such op, or no such case; the message names those there are.
    """
    if op not in OPS:
        raise ValueError(f'op: expected one of {", ".join(OPS)}, got {op!r}')
    found: tuple[Case, ...] = importlib.import_module(OPS[op]).CASES
    selected = tuple(case for case in found if name in case.name)
    if not selected:
        raise ValueError(f'name: expected a part of one of {", ".join(case.name for case in found)}, got {name!r}')
    return selected
