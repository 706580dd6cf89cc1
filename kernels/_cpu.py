"""What plain PyTorch should run on a CPU, where layout and memory traffic decide: the choices of all references.

A reference is first of all its definition in PyTorch's own operations. Where nothing but autograd looks on, it may run
the same arithmetic by parts that fit into the caches, with a backward pass written out by hand.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ._autograd import gradients_by_autograd, wants_autograd
from ._dispatch import is_plain_eager

# New memory costs seven times as much a byte from here on: the allocator maps and clears its pages at each call.
LARGE_BYTES = 32 << 20

PART_NUMBERS = 5 << 16  # in a map of the images that are in hand at a time, where convolutions go by parts


def runs_by_hand(*tensors: Tensor | None) -> bool:
    """Whether a reference may leave PyTorch's own operations here: on a CPU, where nothing but autograd looks on."""
    x = tensors[0]
    return x is not None and x.device.type == 'cpu' and x.numel() > 0 and is_plain_eager(*tensors)


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether a backward pass may follow that reaches one of them."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def infers_by_hand(*tensors: Tensor | None) -> bool:
    """Whether it may, and no gradient is wanted."""
    return not wants_gradient(*tensors) and runs_by_hand(*tensors)


def prefers_products(keys: int, half: bool, training: bool, learned_mask: bool = False) -> bool:
    """Whether attention is faster here by two products and a softmax than by PyTorch's SDPA, for a number of keys.

    With few keys the products win, or it makes no difference. With more, SDPA spares the memory traffic of the scores,
    unless training needs what it is slow at: gradients in half precision, and any of a mask.
    """
    if not training:
        return keys <= 64
    return keys <= 64 or learned_mask or (half and keys <= 512)


def by_hand(
    forward: Callable[..., tuple[Tensor, tuple[Tensor, ...]]],
    backward: Callable[..., tuple[Tensor | None, ...]],
    plain: Callable[..., Tensor],
    *arguments: Any,
) -> Tensor:
    """An op whose two passes are written out by hand, and keep little between them beside its arguments.

    Args:
        forward: Takes the arguments; returns the output, and small tensors that the backward pass would like to have.
        backward: Takes the output's gradient, which arguments need gradients (a list), what `forward` kept, and the
            arguments; returns a gradient or None for each argument.
        plain: The same function in PyTorch's own operations: what is differentiated for second derivatives.
        arguments: Tensors and other values.
    """
    return _ByHand.apply(forward, backward, plain, *arguments)


class _ByHand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, forward: Callable, backward: Callable, plain: Callable, *arguments: Any) -> Tensor:
        with torch.autocast('cpu', enabled=False):  # the passes choose their types themselves
            out, kept = forward(*arguments)
        ctx.functions, ctx.places = (backward, plain), [i for i, x in enumerate(arguments) if isinstance(x, Tensor)]
        ctx.others = [None if isinstance(x, Tensor) else x for x in arguments]
        ctx.save_for_backward(*kept, *(arguments[i] for i in ctx.places))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (backward, plain), arguments, saved = ctx.functions, list(ctx.others), list(ctx.saved_tensors)
        for place in reversed(ctx.places):
            arguments[place] = saved.pop()
        needs = list(ctx.needs_input_grad[3:])
        with torch.autocast('cpu', enabled=False):
            if wants_autograd(grad):
                grads = gradients_by_autograd(plain, arguments, needs, grad)
            else:
                grads = backward(grad, needs, saved, *arguments)
        return None, None, None, *grads


def slices(count: int, size_of_one: int, at_most: int) -> list[slice]:
    """Of `count` images, as many at a time as are within a size, but at least one."""
    together = max(1, at_most // max(1, size_of_one))
    return [slice(start, min(start + together, count)) for start in range(0, count, together)]


def some_images_at_a_time(function: Callable[[Tensor], Tensor], x: Tensor, channels: int) -> Tensor:
    """A function from maps [B, H, W, ...] to [B, H, W, channels] of each image alone, so that the caches hold them."""
    out = x.new_empty(*x.shape[:3], channels)
    for part in slices(x.shape[0], out[0].numel(), PART_NUMBERS):
        out[part] = function(x[part])
    return out


def zeros_for_sums(tensors: Iterable[Tensor | None], needs: Iterable[bool]) -> list[Tensor | None]:
    """Where gradients that are needed are added up over parts: in float32 at least, so that they are rounded once."""
    return [
        torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) if x is not None and need else None
        for x, need in zip(tensors, needs, strict=True)
    ]


def sum_of_rows(x: Tensor) -> Tensor:
    """[rows, C] -> [C]. Half precision by a product with ones, which is faster than a sum and as exact."""
    return x.sum(0) if x.element_size() >= 4 else x.new_ones(x.shape[0]) @ x
