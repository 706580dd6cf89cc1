"""Small functions that several references need."""

from torch import Tensor
from torch.nn import functional as F

from ._fx import fx_leaf


@fx_leaf  # reason: it looks at the dtype
def normalize(x: Tensor, dim: int = -1) -> Tensor:
    """x over its length along an axis; zeros stay zeros."""
    if x.element_size() > 2:
        return F.normalize(x, dim=dim)
    return F.normalize(x.float(), dim=dim).to(x.dtype)  # the floor of the length is zero in float16: zeros would be NaN


def as_dense(weight: Tensor) -> Tensor:
    """The weight [C, 1, kh, kw] of a depthwise convolution, or a gradient of it, with the strides of dense memory.

    PyTorch gives the gradient strides of channels-last memory on the axis of length one, at which DDP warns.
    """
    return weight.squeeze(1).unsqueeze(1)
