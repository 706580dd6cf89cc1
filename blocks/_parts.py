"""What modules ask before they leave the plain way through their layers on a CPU, and work by parts.

A large hidden layer is memory that is new at each call, and getting it takes longer than filling it. Parts of it fit
into the caches, one after the other in the same memory.
"""

from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules import module as global_hooks

from attnzoo.kernels._cpu import LARGE_BYTES, runs_by_hand

PART_BYTES = 4 << 20  # of the hidden layer


def may_skip_layers(module: nn.Module, x: Tensor) -> bool:
    """Whether a module may do what its layers do without calling each once, on the whole input."""
    if isinstance(x, Proxy) or not runs_by_hand(x, *module.parameters()):
        return False
    return not _has_listeners(module)


def pays_by_parts(module: nn.Module, x: Tensor, growth: float) -> bool:
    """Whether a module should take its input by parts; its hidden layer is `growth` times as large as that."""
    if isinstance(x, Proxy) or x.numel() * growth * x.element_size() < LARGE_BYTES:
        return False
    return may_skip_layers(module, x)


def parts(x: Tensor, growth: float) -> tuple[Tensor, ...]:
    """The input, split along its first axis."""
    row_bytes = x[0].numel() * growth * x.element_size()
    return x.split(max(1, int(PART_BYTES / row_bytes)))


def _has_listeners(module: nn.Module) -> bool:
    """Whether anyone listens to a layer inside, and wants to hear it once."""
    kinds = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')
    return any(getattr(global_hooks, f'_global{kind}') for kind in kinds) or any(
        getattr(layer, kind) for layer in module.modules() if layer is not module for kind in kinds
    )
