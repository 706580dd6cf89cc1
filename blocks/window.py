"""Attention within the windows of a map.

Papers:
- `Swin Transformer: Hierarchical Vision Transformer using Shifted Windows` - https://arxiv.org/abs/2103.14030
- `DaViT: Dual Attention Vision Transformers` - https://arxiv.org/abs/2204.03645 (windows without a position bias)
"""

import torch
from timm.layers import to_2tuple, trunc_normal_
from torch import Tensor, nn

from attnzoo.kernels import window_attention
from attnzoo.kernels._fx import fx_leaf

from ._common import check_heads, check_map, make_dropout, pad_to, window_size


class WindowAttention(nn.Module):
    """Window attention over a channels-last map: adjacent or shifted windows, with or without a position bias.

    Maps that the windows do not divide are padded at the right and bottom. In the official code (Swin's for detection,
    DaViT's) that happens behind the norm, so padded tokens are zeros that the projection turns into its bias, and they
    are attended to. Parameters have timm's and the official names.

    Args:
        dim: Channels of input and output, C.
        num_heads: Heads; they divide `dim`.
        window: Tokens of a window, a number or (Wh, Ww).
        shift: Cyclic shift of the map before it is cut, a number or (up, left), each less than the window. An axis of
            the map that is within the window is not shifted (timm and torchvision do the same).
        qkv_bias: Whether the projection to q, k and v has a bias.
        position_bias: Learn a bias for each offset between two tokens of a window, and head.
        mask_padding: Keep padding out of attention. The result then does not depend on it, and differs from the
            official numbers on maps that the windows do not divide.
        pad_after_shift: Where a shifted map does not divide: False pads it before the shift, as Swin's detection code
            and torchvision do; True after it, as timm does. Weights trained with one of them fit the other less well.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout of the output.

    Shape: [B, H, W, C] -> [B, H, W, C], any H and W.

    Raises:
        ValueError: `num_heads` does not divide `dim`, `window`, `shift` or a rate is out of range, or the input is no
            such map.
    """

    mask_padding: torch.jit.Final[bool]
    pad_after_shift: torch.jit.Final[bool]
    relative_position_index: Tensor | None

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        window: int | tuple[int, int] = 7,
        shift: int | tuple[int, int] = 0,
        qkv_bias: bool = True,
        position_bias: bool = True,
        mask_padding: bool = False,
        pad_after_shift: bool = False,
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
        self.shift: tuple[int, int] = to_2tuple(shift)
        if not all(0 <= s < w for s, w in zip(self.shift, self.window, strict=True)):
            raise ValueError(f'shift: expected 0 to less than the window, {self.window}, got {shift}')
        self.mask_padding = mask_padding
        self.pad_after_shift = pad_after_shift

        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.attn_drop = make_dropout('attn_drop', attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = make_dropout('proj_drop', proj_drop)
        offsets = (2 * self.window[0] - 1) * (2 * self.window[1] - 1)
        tokens = self.window[0] * self.window[1]
        self.relative_position_bias_table = (
            nn.Parameter(torch.empty(offsets, num_heads, **dd)) if position_bias else None
        )
        index = torch.empty(tokens, tokens, dtype=torch.long, device=device) if position_bias else None
        self.register_buffer('relative_position_index', index, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise what is this module's own: the bias table and its index."""
        if self.relative_position_bias_table is not None:
            trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Fill the index again, which no checkpoint holds, for example after `to_empty`."""
        if self.relative_position_index is not None:
            self.relative_position_index.copy_(relative_position_index(self.window))

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, self.dim)
        _, H, W, _ = x.shape
        window, index = self.window, self.relative_position_index
        padding: Tensor | None = None
        if self.mask_padding:
            window = fit_window(H, W, window)
            if index is not None:
                index = crop_index(index, self.window, window)
        else:
            x = pad_to_window(x, window)  # a smaller map becomes one window
            padding = self.qkv.bias
            if padding is None:
                padding = x.new_zeros(3 * self.dim)
        out = window_attention(
            self.qkv(x),
            shift=fit_shift(H, W, self.window, self.shift),
            pad_after_shift=self.pad_after_shift,
            bias=self.relative_position_bias_table,
            bias_index=index,
            padding=padding,
            dropout=self.attn_drop.p if self.attn_drop.training else 0.0,
            num_heads=self.num_heads,
            window=window,
        )
        return self.proj_drop(self.proj(out[:, :H, :W]))


@fx_leaf  # reason: int arguments are Proxies under fx
def relative_position_index(window: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Row of a bias table that each pair of a window's tokens takes.

    A table has a row for each offset (dy, dx) from the key to the query, from (1 - Wh, 1 - Ww) to (Wh - 1, Ww - 1),
    with dx running fastest.

    Shape: integers [N, N] (query, key), N = Wh * Ww.
    """
    rows = torch.arange(window[0], device=device) * (2 * window[1] - 1)
    place = (rows.unsqueeze(1) + torch.arange(window[1], device=device)).flatten()
    return place.unsqueeze(1) - place + place[-1]


@fx_leaf  # reason: int arguments are Proxies under fx
def fit_window(height: int, width: int, window: tuple[int, int]) -> tuple[int, int]:
    """As much of a window as a map holds: with padding masked, the rest of it would have no influence."""
    # Comparisons, which torch.compile decides; with min() it would spend minutes on its symbolic sizes.
    return height if height < window[0] else window[0], width if width < window[1] else window[1]


@fx_leaf  # reason: int arguments are Proxies under fx
def crop_index(index: Tensor, window: tuple[int, int], part: tuple[int, int]) -> Tensor:
    """From an index of pairs [N, N] of a window's tokens, the pairs within its upper left part."""
    if part[0] == window[0] and part[1] == window[1]:
        return index
    pairs = index.view(window[0], window[1], window[0], window[1])
    return pairs[: part[0], : part[1], : part[0], : part[1]].reshape(part[0] * part[1], part[0] * part[1])


@fx_leaf  # reason: int arguments are Proxies under fx
def fit_shift(height: int, width: int, window: tuple[int, int], shift: tuple[int, int]) -> tuple[int, int]:
    """The shift, or none along an axis that the window spans."""
    return 0 if height <= window[0] else shift[0], 0 if width <= window[1] else shift[1]


@fx_leaf  # reason: it looks at sizes
def pad_to_window(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Pad a map [B, H, W, C] with zeros to no less than a window."""
    height, width = x.shape[1], x.shape[2]
    return pad_to(x, (height if height > window[0] else window[0], width if width > window[1] else window[1]))
