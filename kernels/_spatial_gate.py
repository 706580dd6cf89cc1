"""Gates of positions, which CBAM and triplet attention make of two pooled maps: convolution, batch norm, sigmoid.

Legend: B images, h x w positions (of a map's three axes, the two that were not pooled), kernel of kh x kw.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ._checks import check_devices, check_odd, check_shape
from ._cpu import by_hand, runs_by_hand
from ._dispatch import cast_for_autocast


class Statistics(NamedTuple):
    """The running statistics of a batch norm, and what it does with them.

    A tuple, so that autograd does not keep them: the next batch may change them before a backward pass.
    """

    mean: Tensor | None
    var: Tensor | None
    training: bool
    momentum: float
    eps: float

    def settled(self) -> 'Statistics':
        """For passes by hand: what others change later in place is not seen, but for updates of a training step."""
        if self.training or self.mean is None or self.var is None:
            return self
        return self._replace(mean=self.mean.clone(), var=self.var.clone())

    def again(self) -> 'Statistics':
        """For a batch that is computed again: it has been counted already."""
        return self._replace(mean=None, var=None) if self.training else self

    def gate(self, pooled: Tensor, conv_weight: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None) -> Tensor:
        """`spatial_gate` with these statistics."""
        return spatial_gate(
            pooled, conv_weight, norm_weight, norm_bias, self.mean, self.var, self.training, self.momentum, self.eps
        )


def check_spatial_gate(x: Tensor, gate: Mapping[str, Tensor | None]) -> None:
    """Raises a ValueError unless they fit: by name, weight of the convolution, then weight, bias, mean and variance."""
    (name, conv_weight), *norm = gate.items()
    if conv_weight is None or conv_weight.ndim != 4 or tuple(conv_weight.shape[:2]) != (1, 2):
        got = None if conv_weight is None else tuple(conv_weight.shape)
        raise ValueError(f'{name}: expected [1, 2, height, width], got shape {got}')
    check_odd(name, conv_weight.shape[2:])
    for one, value in norm:
        check_shape(one, value, [1], '1')
    (mean, running_mean), (var, running_var) = norm[2:]
    if (running_mean is None) != (running_var is None):
        raise ValueError(f'{var}: expected it and {mean}, or neither, got one')
    check_devices('x', x, gate)


def spatial_gate(
    pooled: Tensor,
    conv_weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """[B, 2, h, w] -> [B, 1, h, w]. In training, and without running statistics, those of the batch normalise."""
    scores = _convolve(pooled.to(conv_weight.dtype), conv_weight)
    of_batch = training or running_mean is None
    return F.batch_norm(scores, running_mean, running_var, norm_weight, norm_bias, of_batch, momentum, eps).sigmoid()


def _convolve(pooled: Tensor, weight: Tensor) -> Tensor:
    if torch.jit.is_scripting():
        return _plain(pooled, weight)
    else:
        if runs_by_hand(pooled, weight) and torch.is_grad_enabled():
            return by_hand(_forward, _backward, _plain, *cast_for_autocast(pooled, weight))
        return _plain(pooled, weight)


def _plain(pooled: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(pooled, weight, padding=(weight.shape[2] // 2, weight.shape[3] // 2))


def _forward(pooled: Tensor, weight: Tensor) -> tuple[Tensor, tuple[()]]:
    return _plain(pooled, weight), ()


def _backward(
    grad: Tensor, needs: list[bool], kept: list[Tensor], pooled: Tensor, weight: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    # PyTorch's own gradients of so few channels are several times slower: of the input on some processors, of the
    # weight on others.
    d_pooled = _plain(grad, weight.flip(2, 3).transpose(0, 1)) if needs[0] else None
    return d_pooled, _weight_gradient(grad, pooled, weight) if needs[1] else None


def _weight_gradient(grad: Tensor, pooled: Tensor, weight: Tensor) -> Tensor:
    """One product of all rows of the gradient with all bands of kh padded rows, and sums along its diagonals."""
    kernel_h, kernel_w = weight.shape[2:]
    if pooled.shape[3] > pooled.shape[2]:  # the product grows with the square of the width
        turned = (x.transpose(2, 3) for x in (grad, pooled, weight))
        return _weight_gradient(*turned).transpose(2, 3).contiguous()
    batch, channels, height, width = pooled.shape
    padded = F.pad(pooled, (kernel_w // 2, kernel_w // 2, kernel_h // 2, kernel_h // 2))
    line = channels * padded.shape[3]  # a row of both maps
    bands = padded.permute(0, 2, 1, 3).contiguous()
    bands = bands.as_strided((batch, height, kernel_h * line), (padded.shape[2] * line, line, 1))
    products = grad.reshape(batch * height, width).t() @ bands.reshape(batch * height, -1)
    diagonals = (kernel_h * line + 1, padded.shape[3], line, 1)  # of columns, maps, rows and columns of the kernel
    return products.as_strided((width, channels, kernel_h, kernel_w), diagonals).sum(0).unsqueeze(0)
