"""Small functions that several references need."""

from torch import Tensor
from torch.nn import functional as F


def normalize(x: Tensor, dim: int = -1) -> Tensor:
    """x over its length along an axis; zeros stay zeros."""
    if x.element_size() > 2:
        return F.normalize(x, dim=dim)
    return F.normalize(x.float(), dim=dim).to(x.dtype)  # the floor of the length is zero in float16: zeros would be NaN
