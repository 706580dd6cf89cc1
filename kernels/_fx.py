"""Functions that decide by shapes, in graphs."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.fx import Proxy

FunctionT = TypeVar('FunctionT', bound=Callable[..., Any])


def fx_leaf(function: FunctionT) -> FunctionT:
    """Decorator: torch.fx records a call of this function as one node and does not look inside.

    Inside are checks, padding and a choice of what runs, by shapes and devices that a tracer's proxies do not have.
    It asks no tracer for help (lists of leaves, as timm's), so that any one does: torchvision's feature extractor,
    quantisation, the user's own. TorchScript and torch.compile see the function itself.
    """

    @functools.wraps(function)
    def leaf(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            proxy = _find_proxy((*args, *kwargs.values()))
            if proxy is not None:
                return proxy.tracer.create_proxy('call_function', leaf, args, kwargs)
        return function(*args, **kwargs)

    leaf.__prepare_scriptable__ = lambda: function  # type: ignore[attr-defined]
    return leaf  # type: ignore[return-value]


def _find_proxy(arguments: tuple[Any, ...] | list[Any]) -> Proxy | None:
    for argument in arguments:
        if isinstance(argument, Proxy):
            return argument
        if isinstance(argument, (tuple, list)):  # a size whose height and width are proxies
            proxy = _find_proxy(argument)
            if proxy is not None:
                return proxy
    return None


def is_symbolic(size: int) -> bool:
    """Whether a size stands for many, in a graph that is exported for any of them, and must decide nothing."""
    if torch.jit.is_scripting():
        return False
    else:  # the else keeps TorchScript from looking
        return isinstance(size, torch.SymInt)
