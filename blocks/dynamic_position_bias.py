"""Dynamic position bias: relative position biases from a small MLP, for windows of any size.

Papers:
- `CrossFormer: A Versatile Vision Transformer Hinging on Cross-scale Attention` - https://arxiv.org/abs/2108.00154
"""

import torch
from torch import Tensor, nn

from attnzoo.kernels._fx import fx_leaf

from ._tables import TableModule


class DynamicPositionBias(TableModule):
    """Dynamic position bias: an MLP from the offset of two tokens to a bias for each head.

    Args:
        dim: Channels of the attention that it serves; its own layers are dim // 16 wide.
        num_heads: Heads.

    Legend: T = (2h - 1) * (2w - 1) offsets (dy, dx) of a window's tokens, dx running fastest.

    Shape: a window (h, w) -> the bias table [T, num_heads], whose rows `relative_position_index` refers to.

    Raises:
        ValueError: `dim` is less than 16.
    """

    def __init__(self, dim: int, num_heads: int, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        if dim < 16:
            raise ValueError(f'dim: expected at least 16 channels, of which the bias takes a sixteenth, got {dim}')
        width = dim // 16
        self.pos_proj = nn.Linear(2, width, **dd)
        self.pos1 = nn.Sequential(nn.LayerNorm(width, **dd), nn.ReLU(), nn.Linear(width, width, **dd))
        self.pos2 = nn.Sequential(nn.LayerNorm(width, **dd), nn.ReLU(), nn.Linear(width, width, **dd))
        self.pos3 = nn.Sequential(nn.LayerNorm(width, **dd), nn.ReLU(), nn.Linear(width, num_heads, **dd))

    def forward(self, window: tuple[int, int]) -> Tensor:
        if torch.jit.is_scripting():
            return self.make_table(window)
        else:
            return self.keep(self.make_table, window)

    def make_table(self, window: tuple[int, int]) -> Tensor:
        offsets = relative_offsets(window, self.pos_proj.weight)
        return self.pos3(self.pos2(self.pos1(self.pos_proj(offsets))))


@fx_leaf  # reason: int arguments are Proxies under fx
def relative_offsets(window: tuple[int, int], like: Tensor) -> Tensor:
    """Offsets (dy, dx) between the tokens of a window [T, 2], in the dtype and on the device of `like`."""
    height, width = window
    dy = torch.arange(1 - height, height, dtype=like.dtype, device=like.device)
    dx = torch.arange(1 - width, width, dtype=like.dtype, device=like.device)
    # Not torch.cartesian_prod, which the older ONNX exporter does not know.
    return torch.stack(torch.meshgrid(dy, dx, indexing='ij'), -1).flatten(0, 1)
