"""An op that has kernels, declared once: its place among PyTorch's ops, fakes, gradients, FLOPs, and the way to it.

Eager calls launch the kernels directly, because the way through a registered op takes longer than a small kernel does.
"""

import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_type_hints

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ._autograd import gradients_by_autograd, wants_autograd
from ._dispatch import through_op
from ._launch import image_span

_SCHEMA = {
    int: 'SymInt',
    bool: 'bool',
    str: 'str',
    float: 'float',
    float | None: 'float?',
    tuple[int, int]: 'SymInt[2]',
}


def kernel_op(
    name: str,
    tensors: str,
    call: type,
    kernel: str,
    reference: Callable[..., Tensor],
    flops: Callable[[Any, Sequence[int]], tuple[int, int]],
    keeps: int = 0,
    keeps_output: Callable[[Any], bool] = lambda call: False,
) -> Callable[..., Tensor]:
    """Registers an op and its backward pass, and returns what runs it: a function of its tensors and a call.

    Args:
        name: The op is `attnzoo::<name>`, its backward pass `attnzoo::<name>_backward`.
        tensors: Names of its tensors; those that may be None end in '?'. The first is a map.
        call: The NamedTuple of numbers and pairs that all other arguments are resolved to, once a call.
        kernel: The module that has
            `outputs(*tensors, call, keep)`: memory for the output, and for what the backward pass needs if it is kept;
            `forward(*tensors, call, keep, reuse)`: the same, computed. With `reuse`, what follows from weights alone
            may be what the last call had;
            `backward(d_out, out, *kept, *tensors, call, needs)`: a gradient or None for each tensor.
        reference: Of the tensors and the call: what is differentiated where autograd looks on.
        flops: Of a call's forward and backward pass, from the call and the shape of its output.
        keeps: How many tensors are kept for the backward pass.
        keeps_output: Whether that of a call reads the output as well.
    """
    count = len(tensors.split())
    given = [f'Tensor{"?" * each.endswith("?")} {each.rstrip("?")}' for each in tensors.split()]
    arguments = ', '.join(given + [f'{kind} {each}' for each, kind in _fields(call)])
    kept = ''.join(f', Tensor kept_{i}' for i in range(keeps))
    torch.library.define(f'attnzoo::{name}', f'({arguments}, bool keep) -> ({_tuple(1 + keeps)})')
    torch.library.define(
        f'attnzoo::{name}_backward',
        f'(Tensor d_out, Tensor? out{kept}, {arguments}, bool[] needs) -> ({_tuple(count)})',
    )
    forward_op, backward_op = (getattr(torch.ops.attnzoo, each) for each in (name, f'{name}_backward'))
    first = 2 + keeps  # of the op's tensors among the arguments of the backward pass

    @functools.cache
    def kernels() -> Any:
        return importlib.import_module(kernel)  # here, because Triton may be missing

    @torch.library.impl(f'attnzoo::{name}', 'CompositeExplicitAutograd')
    def run_forward(*arguments: Any) -> Any:
        settings = _unflatten(call, arguments[count:])
        return _one_or_all(kernels().forward(*arguments[:count], settings, arguments[-1], False))

    @torch.library.register_fake(f'attnzoo::{name}')
    def fake_forward(*arguments: Any) -> Any:
        return _one_or_all(kernels().outputs(*arguments[:count], _unflatten(call, arguments[count:]), arguments[-1]))

    @torch.library.impl(f'attnzoo::{name}_backward', 'CompositeExplicitAutograd')
    def run_backward(*arguments: Any) -> Any:
        settings = _unflatten(call, arguments[first + count :])
        grads = kernels().backward(*arguments[: first + count], settings, arguments[-1])
        needed = zip(grads, arguments[-1], strict=True)
        return _one_or_all([grad if need else arguments[0].new_empty(0) for grad, need in needed])

    @torch.library.register_fake(f'attnzoo::{name}_backward')
    def fake_backward(*arguments: Any) -> Any:
        needed = zip(arguments[first : first + count], arguments[-1], strict=True)
        return _one_or_all([x.new_empty(x.shape) if need else arguments[0].new_empty(0) for x, need in needed])

    @register_flop_formula(forward_op)
    def forward_flops(*shapes: Any, out_shape: Any, **_: Any) -> int:
        return flops(_unflatten(call, shapes[count:]), out_shape[0])[0]

    @register_flop_formula(backward_op)
    def backward_flops(d_out_shape: Any, *shapes: Any, **_: Any) -> int:
        return flops(_unflatten(call, shapes[first - 1 + count :]), d_out_shape)[1]

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, settings: Any, *given: Tensor | None) -> Tensor:
            if through_op(given[0]):
                out, *kept = _all(forward_op(*given, *_flatten(settings), True))
            else:
                out, *kept = kernels().forward(*given, settings, True, False)
            ctx.save_for_backward(out if keeps_output(settings) else None, *kept, *given)
            ctx.settings = settings
            return out

        @staticmethod
        def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
            saved, settings, needs = ctx.saved_tensors, ctx.settings, ctx.needs_input_grad[1:]
            direct = not through_op(d_out)
            if direct and wants_autograd(d_out):
                given = saved[1 + keeps :]
                return None, *gradients_by_autograd(lambda *x: reference(*x, settings), given, needs, d_out)
            if image_span(d_out) >= 2**31:
                d_out = d_out.contiguous()
            if direct:
                return None, *kernels().backward(d_out, *saved, settings, needs)
            grads = _all(backward_op(d_out, *saved, *_flatten(settings), needs))
            return None, *(grad if need else None for grad, need in zip(grads, needs, strict=True))

    def run(settings: Any, *given: Tensor | None) -> Tensor:
        grad = torch.is_grad_enabled()
        if grad:
            for x in given:
                if x is not None and x.requires_grad:
                    return Function.apply(settings, *given)
        if through_op(given[0]):
            return _all(forward_op(*given, *_flatten(settings), False))[0]
        return kernels().forward(*given, settings, False, not grad)[0]

    return run


def attention_obstacle(head_dim: int, *maps: Tensor | None) -> str | None:
    """Why the kernels of no attention take heads of so many channels, or these maps, if so."""
    if head_dim > 128:
        return f'its kernel takes heads of up to 128 channels, not {head_dim}'
    for x in maps:
        if x is not None and image_span(x) >= 2**31:
            return 'its kernel takes maps of less than 2**31 elements an image'
    return None


def _one_or_all(tensors: Sequence[Tensor]) -> Any:
    """What a registered op returns: of one tensor no tuple."""
    return tuple(tensors) if len(tensors) > 1 else tensors[0]


def _all(returned: Any) -> Sequence[Tensor]:
    return (returned,) if isinstance(returned, Tensor) else returned


def _tuple(count: int) -> str:
    return ', '.join(['Tensor'] * count)


def _fields(call: type) -> Iterator[tuple[str, str]]:
    """Name and type of each argument that a call is taken apart to; a NamedTuple within it is taken apart as well."""
    for name, kind in get_type_hints(call).items():
        if hasattr(kind, '_fields'):
            yield from _fields(kind)
        else:
            yield name, _SCHEMA[kind]


def _flatten(call: Any) -> list[Any]:
    values: list[Any] = []
    for value in call:
        values += _flatten(value) if hasattr(value, '_fields') else [value]
    return values


def _unflatten(call: type, values: Sequence[Any]) -> Any:
    """A call from the first of these values; the rest is not its."""
    rest = iter(values)

    def make(kind: type) -> Any:
        if hasattr(kind, '_fields'):
            return kind(*(make(part) for part in get_type_hints(kind).values()))
        value = next(rest)
        return tuple(value) if isinstance(value, (list, tuple)) else value

    return make(call)
