"""What several gates of CNNs need: activations by name, the gate of positions, and checks of their arguments."""

from typing import Any

from timm.layers import get_act_layer
from torch import Tensor, nn

from attnzoo.kernels._fx import fx_leaf
from attnzoo.kernels._gates import ACTIVATIONS

# By class too: what timm makes of a name, and PyTorch's own.
_NAMES: dict[object, str] = {
    **{get_act_layer(name): name for name in ACTIVATIONS},
    nn.GELU: 'gelu',
    nn.Hardsigmoid: 'hard_sigmoid',
    nn.Hardswish: 'hard_swish',
    nn.Sigmoid: 'sigmoid',
    nn.Tanh: 'tanh',
}


def activation_name(layer: Any) -> str | None:
    """The name that our ops have for an activation, a name or a class as timm takes them; None if they have none."""
    return _NAMES.get(get_act_layer(layer))  # type: ignore[arg-type]


def check_kernel(name: str, size: int) -> None:
    """Raises a ValueError unless a kernel has a middle."""
    if size < 1 or size % 2 == 0:
        raise ValueError(f'{name}: expected an odd number, got {size}')


def reduced_channels(name: str, channels: int, reduction: int) -> int:
    """channels // reduction; a ValueError names the argument if that leaves none."""
    if reduction < 1 or channels // reduction == 0:
        raise ValueError(f'{name}: expected 1 to {channels}, so that channels are left of {channels}, got {reduction}')
    return channels // reduction


class PooledConv(nn.Module):
    """The parameters of a gate of positions: a convolution of two pooled maps, and its batch norm.

    The batch norm updates slowly, as the published ones do. Where it is made a `SyncBatchNorm`, it keeps to the
    statistics of its own process.
    """

    def __init__(self, kernel_size: int, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        check_kernel('kernel_size', kernel_size)
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False, **dd)
        self.bn = nn.BatchNorm2d(1, eps=1e-5, momentum=0.01, **dd)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Running mean and variance."""
        return self.bn.running_mean, self.bn.running_var  # type: ignore[return-value]

    def count(self, x: Tensor) -> float:
        """Counts a batch of training, and gives its share in the running statistics."""
        return _count(x, self.bn.num_batches_tracked, self.bn.momentum, self.bn.training)


@fx_leaf  # reason: it changes a buffer, which a tracer would do once and not record
def _count(x: Tensor, batches: Tensor | None, momentum: float | None, training: bool) -> float:
    if training and batches is not None:
        batches.add_(1)
        if momentum is None:
            return 1.0 / float(batches)
    return 0.0 if momentum is None else momentum
