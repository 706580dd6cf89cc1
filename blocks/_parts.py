"""Hidden layers that are computed by parts.

On a CPU a large one is memory that is new at each call, and getting it takes longer than filling it. Parts of it fit
into the caches, one after the other in the same memory.
"""

from torch import Tensor, nn
from torch.fx import Proxy

from attnzoo.kernels._cpu import LARGE_BYTES, runs_by_hand

PART_BYTES = 4 << 20  # of the hidden layer


def pays_by_parts(module: nn.Module, x: Tensor, growth: float) -> bool:
    """Whether a module should take its input by parts; its hidden layer is `growth` times as large as that."""
    if isinstance(x, Proxy) or not runs_by_hand(x) or x.numel() * growth * x.element_size() < LARGE_BYTES:
        return False
    # Whoever listens to a layer wants to hear it once.
    return not any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
        for m in module.modules()
        if m is not module
    )


def parts(x: Tensor, growth: float) -> tuple[Tensor, ...]:
    """The input, split along its first axis."""
    row_bytes = x[0].numel() * growth * x.element_size()
    return x.split(max(1, int(PART_BYTES / row_bytes)))
