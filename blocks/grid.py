"""Attention over a grid that spans the map, and over the map's blocks: the two attentions of MaxViT.

Papers:
- `MaxViT: Multi-Axis Vision Transformer` - https://arxiv.org/abs/2204.01697
"""

import torch
from timm.layers import resize_rel_pos_bias_table
from torch import Tensor, nn

from attnzoo.kernels import window_attention

from ._common import check_heads, check_map, make_dropout, window_size
from .window import crop_index, fit_window, relative_position_index


class GridAttention(nn.Module):
    """Attention over a channels-last map among tokens that are spread evenly over it, with a relative position bias.

    A grid of Wh x Ww tokens spans the map; there are as many grids, side by side, as its spacing leaves room for.
    On maps that the grid does not divide the padding at the right and bottom is masked (the official code and timm's
    refuse them), and a map that is smaller than the grid has one grid of its own size. Parameters have timm's names.

    Args:
        dim: Channels of input and output, C.
        num_heads: Heads; they divide `dim`.
        window: Tokens of a grid, a number or (Wh, Ww).
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout of the output.

    Shape: [B, H, W, C] -> [B, H, W, C], any H and W.

    Raises:
        ValueError: `num_heads` does not divide `dim`, `window` or a rate is out of range, or the input is no such map.
    """

    partition = 'grid'
    __constants__ = ('partition',)  # for TorchScript; typing.Final would not let the subclass choose

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        window: int | tuple[int, int] = 7,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        check_heads(dim, num_heads)
        self.dim = dim
        self.num_heads = num_heads
        self.window = window_size('window', window)
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.rel_pos = RelativePositionBias(self.window, num_heads, **dd)
        self.attn_drop = make_dropout('attn_drop', attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = make_dropout('proj_drop', proj_drop)

    def set_window(self, window: int | tuple[int, int]) -> None:
        """Change the window, and resize the table of position biases to it."""
        self.window = window_size('window', window)
        self.rel_pos.set_window(self.window)

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, self.dim)
        _, H, W, _ = x.shape
        window = fit_window(H, W, self.window)
        table, index = self.rel_pos.look_up(window)
        out = window_attention(
            self.qkv(x),
            partition=self.partition,
            bias=table,
            bias_index=index,
            dropout=self.attn_drop.p if self.attn_drop.training else 0.0,
            num_heads=self.num_heads,
            window=window,
        )
        return self.proj_drop(self.proj(out))


class BlockAttention(GridAttention):
    """The same attention, with the same parameters, within the map's blocks of Wh x Ww adjacent tokens."""

    partition = 'window'


class RelativePositionBias(nn.Module):
    """MaxViT's table of relative position biases.

    Legend: T = (2Wh - 1) * (2Ww - 1) offsets, N = h * w tokens.

    `look_up` takes a window (h, w), at most (Wh, Ww), and returns the table [T, num_heads] and the index [N, N] into
    its rows, as `attnzoo.kernels.window_attention` takes them.
    """

    relative_position_index: Tensor

    def __init__(self, window: tuple[int, int], num_heads: int, device=None, dtype=None):
        super().__init__()
        self.window = window
        tokens = window[0] * window[1]
        self.relative_position_bias_table = nn.Parameter(
            torch.empty(num_heads, 2 * window[0] - 1, 2 * window[1] - 1, device=device, dtype=dtype)
        )
        index = torch.empty(tokens, tokens, dtype=torch.long, device=device)
        self.register_buffer('relative_position_index', index, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the table and its index."""
        nn.init.normal_(self.relative_position_bias_table, std=0.02)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Fill the index again, which no checkpoint holds, for example after `to_empty`."""
        # Transposed: this table goes by the offset from the query to the key.
        self.relative_position_index.copy_(relative_position_index(self.window).t())

    def set_window(self, window: tuple[int, int]) -> None:
        """Resize the table as timm does; its dtype, device and `requires_grad` stay."""
        if window == self.window:
            return
        table, tokens = self.relative_position_bias_table, window[0] * window[1]
        shape = (table.shape[0], 2 * window[0] - 1, 2 * window[1] - 1)
        resized = resize_rel_pos_bias_table(table.detach(), window, shape)
        self.window = window
        self.relative_position_bias_table = nn.Parameter(resized, requires_grad=table.requires_grad)
        self.relative_position_index = self.relative_position_index.new_empty(tokens, tokens)
        self.init_non_persistent_buffers()

    def look_up(self, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The bias table and the index of a window."""
        # Not `forward`: hooks such as a FLOP counter's refuse an output that is, without gradients, a parameter's view.
        return (
            self.relative_position_bias_table.flatten(1).t(),
            crop_index(self.relative_position_index, self.window, window),
        )
