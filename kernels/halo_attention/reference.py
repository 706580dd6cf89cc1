"""Halo attention in plain PyTorch: the definition of the op, and what runs where a kernel does not.

Legend: B images, H x W map, N heads of d channels (values: e), y, x blocks of i, j queries, each with a window of
u, w keys.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from attnzoo.kernels._cpu import by_hand, runs_by_hand

from . import eager_cpu


def halo_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    height_rel: Tensor,
    width_rel: Tensor,
    num_heads: int,
    block: tuple[int, int],
    halo: tuple[int, int],
    stride: int,
    scale: float,
    position_scale: float,
    mask_padding: bool,
) -> Tensor:
    """The op on arguments that `halo_attention` has checked."""
    if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript leaves out a branch by this test alone)
        if runs_by_hand(q, k, v, height_rel, width_rel):
            return by_hand(
                eager_cpu.forward, eager_cpu.backward, _plain,
                q, k, v, height_rel, width_rel, num_heads, block, halo, stride, scale, position_scale, mask_padding,
            )  # fmt: skip
    return _plain(q, k, v, height_rel, width_rel, num_heads, block, halo, stride, scale, position_scale, mask_padding)


def _plain(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    height_rel: Tensor,
    width_rel: Tensor,
    num_heads: int,
    block: tuple[int, int],
    halo: tuple[int, int],
    stride: int,
    scale: float,
    position_scale: float,
    mask_padding: bool,
) -> Tensor:
    height, width, head_dim = k.shape[1], k.shape[2], q.shape[3] // num_heads
    size, tile = (q.shape[1], q.shape[2]), (block[0] // stride, block[1] // stride)
    blocks = (height + block[0] - 1) // block[0], (width + block[1] - 1) // block[1]

    q = F.pad(q, [0, 0, 0, blocks[1] * tile[1] - size[1], 0, blocks[0] * tile[0] - size[0]])
    q = q.unflatten(3, (num_heads, -1)).unflatten(2, (blocks[1], tile[1])).unflatten(1, (blocks[0], tile[0]))
    q = q.permute(0, 5, 1, 3, 2, 4, 6)  # [B, N, y, x, i, j, d]
    windows = _windows(k, num_heads, block, halo, blocks)
    if v is None:
        keys, values = windows[..., :head_dim], windows[..., head_dim:]
    else:
        keys, values = windows, _windows(v, num_heads, block, halo, blocks)

    scores = (q.flatten(4, 5) @ keys.flatten(4, 5).transpose(4, 5)) * scale
    rows = _of_distance(height_rel, tile[0]).to(q.dtype) * position_scale
    columns = _of_distance(width_rel, tile[1]).to(q.dtype) * position_scale
    by_row = torch.einsum('bnyxijd,iud->bnyxiju', q, rows)
    by_column = torch.einsum('bnyxijd,jwd->bnyxijw', q, columns)
    relative = by_row.unsqueeze(7) + by_column.unsqueeze(6)
    scores = scores + relative.flatten(6).flatten(4, 5)
    if mask_padding:
        ones = torch.ones(1, height, width, 1, dtype=torch.bool, device=k.device)
        on_map = _windows(ones, 1, block, halo, blocks)  # [1, 1, y, x, u, w, 1]
        scores = scores.masked_fill(~on_map.flatten(4).unsqueeze(4), float('-inf'))
    out = scores.softmax(-1).to(values.dtype) @ values.flatten(4, 5)  # [B, N, y, x, i * j, e]
    out = out.unflatten(4, tile).permute(0, 2, 4, 3, 5, 1, 6).flatten(5).flatten(3, 4).flatten(1, 2)
    return out[:, : size[0], : size[1]]


def _windows(
    x: Tensor, num_heads: int, block: tuple[int, int], halo: tuple[int, int], blocks: tuple[int, int]
) -> Tensor:
    """A map [B, H, W, C] -> its blocks with their halos, [B, N, y, x, u, w, d]; zeros beyond the map."""
    bottom, right = blocks[0] * block[0] - x.shape[1], blocks[1] * block[1] - x.shape[2]
    x = F.pad(x, [0, 0, halo[1], halo[1] + right, halo[0], halo[0] + bottom])
    rows, columns = block[0] + 2 * halo[0], block[1] + 2 * halo[1]
    y = torch.arange(blocks[0], device=x.device).unsqueeze(1) * block[0] + torch.arange(rows, device=x.device)
    z = torch.arange(blocks[1], device=x.device).unsqueeze(1) * block[1] + torch.arange(columns, device=x.device)
    x = x.index_select(1, y.flatten()).index_select(2, z.flatten())
    x = x.unflatten(3, (num_heads, -1)).unflatten(2, (blocks[1], columns)).unflatten(1, (blocks[0], rows))
    return x.permute(0, 5, 1, 3, 2, 4, 6)


def _of_distance(table: Tensor, queries: int) -> Tensor:
    """Of each query along a block's side and each key along the window's, what the table has for their distance."""
    keys = (table.shape[0] + 1) // 2
    query, key = torch.arange(queries, device=table.device), torch.arange(keys, device=table.device)
    return table[key - query.unsqueeze(1) + keys - 1]
