"""What attention with relative logits needs: widths of heads, tables of distances, memory formats."""

import torch
from timm.layers import make_divisible, trunc_normal_
from torch import Tensor, nn

from attnzoo.kernels._fx import fx_leaf

from ._common import check_heads


def head_dims(dim_out: int, num_heads: int, head_dim: int | None, qk_ratio: float) -> tuple[int, int]:
    """Channels of a head's queries and keys, and of its values; a ValueError names what does not fit."""
    check_heads(dim_out, num_heads)
    if head_dim is None:
        head_dim = make_divisible(dim_out * qk_ratio, 8) // num_heads
        if head_dim < 1:
            raise ValueError(
                f'qk_ratio: expected one that leaves each of {num_heads} heads a channel of {dim_out}, got {qk_ratio}'
            )
    elif head_dim < 1:
        raise ValueError(f'head_dim: expected at least 1, got {head_dim}')
    return head_dim, dim_out // num_heads


class RelativePositions(nn.Module):
    """A vector for each distance along the height, and along the width, of a window.

    Args:
        window: Height and width.
        head_dim: Channels of a vector.
    """

    def __init__(self, window: tuple[int, int], head_dim: int, device=None, dtype=None):
        super().__init__()
        self.height_rel = nn.Parameter(torch.empty(2 * window[0] - 1, head_dim, device=device, dtype=dtype))
        self.width_rel = nn.Parameter(torch.empty(2 * window[1] - 1, head_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all vectors, the smaller the longer they are."""
        for table in (self.height_rel, self.width_rel):
            trunc_normal_(table, std=table.shape[1] ** -0.5)


@fx_leaf  # reason: it looks at strides
def to_channels_first(out: Tensor, x: Tensor) -> Tensor:
    """A map [B, H, W, C] as [B, C, H, W], in the memory format of x, a map [B, C, H, W]."""
    out = out.permute(0, 3, 1, 2)
    if x.stride(1) < x.stride(3):  # the channels of a position lie side by side (vmap knows strides, not formats)
        return out
    return out.contiguous()
