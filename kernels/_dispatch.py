"""Which backend runs an op, and why: one decision for all ops.

The environment variable ATTNZOO_BACKEND (auto, triton or torch) decides for calls that leave `backend` at 'auto'.
"""

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from . import _launch

BACKENDS = ('auto', 'triton', 'torch')
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_DEFAULT = os.environ.get('ATTNZOO_BACKEND', 'auto')
_HAS_TRITON = importlib.util.find_spec('triton') is not None
_INTERPRET = os.environ.get('TRITON_INTERPRET') == '1'  # Triton reads it when kernels are decorated: once, as here
_last: dict[str, tuple[str, str]] = {}


def why(op: str | None = None) -> str:
    """Which backend the latest eager call of an op took and for what reason, in words.

    Args:
        op: The name of a public function of `attnzoo.kernels`; None for all that have been called, a line each.
    """
    if op is not None:
        return _describe(op) if op in _last else f'{op}: not called yet'
    return '\n'.join(_describe(name) for name in _last) or 'no op has been called yet'


def _describe(op: str) -> str:
    backend, reason = _last[op]
    return f'{op}: {backend}, because {reason}'


def use_triton(op: str, backend: str, tensor: Tensor, obstacle: str | None = None) -> bool:
    """Decides for one call, and notes the reason for `why`.

    Args:
        op: Name of the op.
        backend: The caller's wish.
        tensor: An input; its device and dtype stand for all of them.
        obstacle: Why the op's kernel cannot take these arguments, or None if it can.

    Raises:
        ValueError: An unknown backend; or 'triton', where the kernel cannot run.
    """
    if backend not in BACKENDS:
        raise ValueError(f'backend: expected one of {", ".join(map(repr, BACKENDS))}, got {backend!r}')
    wish = _DEFAULT if backend == 'auto' else backend
    if wish == 'torch':
        triton, reason = False, 'it was asked for'
    elif wish == 'auto' and not torch.compiler.is_compiling() and _is_watched(tensor):
        triton, reason = (
            False,
            'a mode or a tensor subclass looks on (a FLOP counter, fake tensors), which should see PyTorch',
        )
    else:
        reason = _obstacle(tensor, asked=wish == 'triton') or obstacle or ''
        triton = not reason
        if triton:
            reason = 'the kernel can run here'
        elif backend == 'triton':
            raise ValueError(f"backend: expected 'auto' or 'torch' for {op} here, got 'triton': {reason}")
    if not torch.compiler.is_compiling():  # a graph is no place for notes
        _last[op] = 'triton' if triton else 'torch', reason
    return triton


def _obstacle(tensor: Tensor, asked: bool) -> str | None:
    if _launch.on_paper():
        return None
    if not tensor.is_cuda and not (asked and _INTERPRET and tensor.device.type == 'cpu'):
        return f'the tensors are on the device {tensor.device.type!r}'
    if not _HAS_TRITON:
        return 'triton is not installed'
    if tensor.dtype not in KERNEL_DTYPES:
        return f'the kernels do not take {tensor.dtype}'
    if tensor.is_cuda and torch.version.hip is None and torch.cuda.get_device_capability(tensor.device) < (8, 0):
        return 'the GPU is older than compute capability 8.0'
    if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing():
        return 'the graph is being exported'
    if not torch.compiler.is_compiling() and is_transformed():
        return 'torch.func and forward-mode AD see through PyTorch only'
    return None


def cast_for_autocast(*tensors: Tensor | None) -> list[Any]:
    """Floating-point tensors in the dtype that autocast, where it is on, gives to products and convolutions."""
    device = next(x.device.type for x in tensors if x is not None)
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [x if x is None or x.dtype == torch.float64 else x.to(dtype) for x in tensors]


def is_plain_eager(*tensors: Tensor | None) -> bool:
    """Whether nothing but autograd looks on: no graph is made, no mode, transform or tensor subclass is at work.

    The one test before a reference takes a shortcut (an autograd.Function, memory used again, work by parts), which
    tracers, exporters, FLOP counters and `torch.func` would get wrong or refuse. Elsewhere it is plain PyTorch.

    Backward passes ask again: `vmap` may come with the gradient (`is_grads_batched`).
    """
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing() or _is_watched(*tensors) or is_transformed())


def is_transformed() -> bool:
    """Whether a `torch.func` transform or forward-mode AD is active."""
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0


def _is_watched(*tensors: Tensor | None) -> bool:
    """Whether a dispatch mode is active, or one of the tensors sees the operations on it."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._ops._len_torch_dispatch_stack_pre_dispatch() > 0
        or any(x is not None and _sees_operations(x) for x in tensors)
    )


def _sees_operations(x: Tensor) -> bool:
    # Gradients that come in batches (`is_grads_batched`, vectorized Jacobians) are under a vmap of their own.
    return type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__ or torch._C._functorch.is_legacy_batchedtensor(x)


def through_op(*tensors: Tensor | None) -> bool:
    """Whether a kernel is called as a registered op: in a graph, or where a mode or a tensor subclass looks on.

    Plain eager calls launch it directly, because the way through the op takes longer than a small kernel does.
    """
    return torch.compiler.is_compiling() or _is_watched(*tensors)
