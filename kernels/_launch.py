"""Launching kernels: on the device, or on paper, so that they can be compiled for a device that is not there."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Launch(NamedTuple):
    """One launch as it was asked for: arguments by name, tensors on the meta device."""

    kernel: Any
    arguments: dict[str, Any]
    grid: tuple[int, ...]
    options: dict[str, Any]
    data_trips: int = 1  # of each loop that ends by what is in memory, on average: for the compilation report


class Target(NamedTuple):
    """What a launcher picks its tiles by."""

    backend: str  # 'cuda' or 'hip'
    arch: int | str  # 90 for compute capability 9.0, 'gfx942'
    multiprocessors: int

    @property
    def precision(self) -> str:
        """In which `_triton.dot` multiplies float32: by three products on tensor cores, where the compiler has them."""
        return 'tf32x3' if self.backend == 'cuda' else 'ieee'


_INTERPRETER = Target('cuda', 80, 2)  # few programs, so that each of them takes several turns even on a small map
_paper: tuple[Target, list[Launch]] | None = None


@contextmanager
def recording(target: Target) -> Iterator[list[Launch]]:
    """Launches in this context run nothing: they are collected as they would be on the target."""
    global _paper
    _paper = (target, [])
    try:
        yield _paper[1]
    finally:
        _paper = None


def on_paper() -> bool:
    return _paper is not None


def target_of(tensor: Tensor) -> Target:
    """The device that kernels on this tensor run on."""
    if _paper is not None:
        return _paper[0]
    return _device_target(tensor.device.index) if tensor.is_cuda else _INTERPRETER


@functools.cache
def _device_target(device: int) -> Target:
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return Target('hip', properties.gcnArchName.split(':')[0], properties.multi_processor_count)
    return Target('cuda', properties.major * 10 + properties.minor, properties.multi_processor_count)


def image_span(x: Tensor) -> int:
    """Elements of memory from the first to the last of an image of x: kernels count them in 32 bits."""
    span = 0
    for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True):
        span += (size - 1) * stride
    return span


def launch(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], data_trips: int = 1, **options: Any) -> None:
    """Runs a grid of programs on the device of the kernel's first argument, a tensor; none for an empty input.

    Of the arguments, which several kernels may share, each takes those that it names.
    """
    arguments = {name: arguments[name] for name in kernel.arg_names}
    options['enable_fp_fusion'] = True
    if _paper is not None:
        _paper[1].append(Launch(kernel, arguments, grid, options, data_trips))
    elif 0 not in grid:
        first = next(iter(arguments.values()))
        if first.is_cuda:
            with torch.cuda.device(first.device):
                kernel[grid](**arguments, **options)
        else:
            kernel[grid](**arguments, **options)


def split(groups: int, images: int, programs: int) -> tuple[int, int]:
    """Shares of the images and of the groups, so many programs at most: all groups apart before images are."""
    group_shares = max(1, min(groups, programs))
    return min(images, max(1, programs // group_shares)), group_shares
