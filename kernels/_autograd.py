"""What hand-written backward passes fall back on where autograd is not the only one that looks on."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._dispatch import is_plain_eager


def wants_autograd(*grads: Tensor) -> bool:
    """Whether a backward pass must be one that PyTorch can look into.

    It will be differentiated itself (`create_graph`), or it runs under `vmap` (`is_grads_batched`) or a mode.
    """
    return torch.is_grad_enabled() or not is_plain_eager(*grads)


def gradients_by_autograd(
    function: Callable[..., Tensor], arguments: Sequence[Any], needs: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of a function in plain PyTorch, computed anew; they can be differentiated where gradients are on.

    Args:
        function: Takes the arguments and returns one tensor.
        arguments: Tensors and other values.
        needs: Which of them want a gradient; the others get None.
        grad: Gradient of what the function returns.
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases: an argument may have been computed from another, whose gradient is not to come through it.
        arguments = [x.view_as(x) if need else x for x, need in zip(arguments, needs, strict=True)]
        out = function(*arguments)
    wanted = [x for x, need in zip(arguments, needs, strict=True) if need]
    found = iter(torch.autograd.grad(out, wanted, grad.to(out.dtype), create_graph=differentiable, allow_unused=True))
    return tuple(next(found) if need else None for need in needs)
