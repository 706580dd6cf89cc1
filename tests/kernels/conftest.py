"""Where kernels run in this process: a GPU, Triton's interpreter (TRITON_INTERPRET=1), or nowhere.

Tests marked `kernel` are collected only where kernels run; test_interpreter.py runs them where there is no GPU.
"""

import os

import pytest
import torch

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
KERNEL_DEVICE = 'cpu' if INTERPRETED else 'cuda' if torch.cuda.is_available() else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    without = [item for item in items if KERNEL_DEVICE is None and item.get_closest_marker('kernel')]
    config.hook.pytest_deselected(items=without)
    items[:] = [item for item in items if item not in without]


@pytest.fixture
def kernel_device() -> torch.device:
    assert KERNEL_DEVICE is not None
    return torch.device(KERNEL_DEVICE)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory holds NaN, so that a position which a kernel leaves out shows."""
    empty, new_empty, empty_like = torch.empty, torch.Tensor.new_empty, torch.empty_like

    def poison(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.fill_(float('nan')) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, 'empty', lambda *args, **kwargs: poison(empty(*args, **kwargs)))
    monkeypatch.setattr(torch, 'empty_like', lambda *args, **kwargs: poison(empty_like(*args, **kwargs)))
    monkeypatch.setattr(torch.Tensor, 'new_empty', lambda *args, **kwargs: poison(new_empty(*args, **kwargs)))
