"""Continuous position bias: biases between the positions of two grids from a small MLP, for grids of any size.

Papers:
- `Swin Transformer V2: Scaling Up Capacity and Resolution` - https://arxiv.org/abs/2111.09883
- `TransNeXt: Robust Foveal Visual Perception for Vision Transformers` - https://arxiv.org/abs/2311.17132
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnzoo.kernels._fx import fx_leaf

from ._common import window_size
from ._tables import TableModule


class ContinuousPositionBias(TableModule):
    """Continuous position bias: an MLP from the logarithm of the distance of two positions to a bias for each head.

    Queries are the positions of a map, keys those of the same map or of a pooled one, whose positions are the means of
    the positions that they pool. Distances are relative to the map's size at pre-training.

    Args:
        num_heads: Heads, N.
        pretrain_size: Height and width of the map at pre-training, a number or a pair.
        pool_ratio: The map's size over that of the keys' map, see `pooled_size`.
        hidden: Width of the MLP.
        bias_size: Compute the biases for maps of this size and resize them bilinearly (the 'interp' of TransNeXt's
            dense prediction code), a number or a pair; None computes them for the actual size ('extrap').

    Shape: the map's size (H, W) -> [N, H * W, h * w] for keys of a map (h, w).

    Raises:
        ValueError: A size or the ratio is out of range.
    """

    def __init__(
        self,
        num_heads: int,
        pretrain_size: int | tuple[int, int],
        pool_ratio: int = 1,
        hidden: int = 512,
        bias_size: int | tuple[int, int] | None = None,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        if pool_ratio < 1:
            raise ValueError(f'pool_ratio: expected at least 1, got {pool_ratio}')
        self.pool_ratio = pool_ratio
        self.pretrain_size = window_size('pretrain_size', pretrain_size)
        self.bias_size = None if bias_size is None else window_size('bias_size', bias_size)
        self.fc1 = nn.Linear(2, hidden, **dd)
        self.fc2 = nn.Linear(hidden, num_heads, **dd)

    def forward(self, size: tuple[int, int]) -> Tensor:
        made = size if self.bias_size is None else self.bias_size
        keys, made_keys = pooled_size(size, self.pool_ratio), pooled_size(made, self.pool_ratio)
        if torch.jit.is_scripting():
            table = self.make_table(made)
        else:
            table = self.keep(self.make_table, made)
        index = pair_index(made, made_keys, table)
        bias = table.t().index_select(1, index.flatten()).unflatten(1, (made_keys[0] * made_keys[1], -1))
        return resize_bias(bias, made, made_keys, size, keys).transpose(1, 2)

    def make_table(self, size: tuple[int, int]) -> Tensor:
        """Biases of all distances on a map of that size, [T, N]: much smaller than those of all pairs."""
        distances = log_distances(size, pooled_size(size, self.pool_ratio), self.pretrain_size, self.fc1.weight)
        return self.fc2(F.relu(self.fc1(distances)))


@fx_leaf  # reason: int arguments are Proxies under fx, and max decides on them
def pooled_size(size: tuple[int, int], ratio: int) -> tuple[int, int]:
    """What a map (H, W) is pooled to: its size over the ratio, rounded down, and at least one token."""
    if torch.jit.is_scripting():
        pass
    elif torch.jit.is_tracing():
        size = int(size[0]), int(size[1])  # the older ONNX exporter pools to constants only
    return max(1, size[0] // ratio), max(1, size[1] // ratio)


@fx_leaf  # reason: int arguments are Proxies under fx
def log_distances(
    size: tuple[int, int], key_size: tuple[int, int], pretrain_size: tuple[int, int], like: Tensor
) -> Tensor:
    """Logarithmic distances (dy, dx) that queries and keys may have, [T, 2], with the dtype and device of `like`."""
    dy = axis_distances(size[0], key_size[0], pretrain_size[0], like)
    dx = axis_distances(size[1], key_size[1], pretrain_size[1], like)
    return torch.stack([dy.unsqueeze(1).expand(-1, dx.shape[0]), dx.expand(dy.shape[0], -1)], 2).flatten(0, 1)


@fx_leaf  # reason: int arguments are Proxies under fx
def pair_index(size: tuple[int, int], key_size: tuple[int, int], like: Tensor) -> Tensor:
    """Which of `log_distances` each key and query have: integers [h * w, H * W]."""
    _, _, row = distance_range(size[1], key_size[1])
    rows, columns = axis_index(size[0], key_size[0], like), axis_index(size[1], key_size[1], like)
    return (rows[:, None, :, None] * row + columns[None, :, None, :]).flatten(2).flatten(0, 1)


@fx_leaf  # reason: int arguments are Proxies under fx
def distance_range(size: int, keys: int) -> tuple[int, int, int]:
    """Twice the distances along an axis, which are integers: the lowest, the step to the next, and how many."""
    # Means of pooled positions are whole or half. Where the keys divide the axis, all are whole or all are half, and
    # every second integer will do. Some of these distances are of no pair; without them, torch.compile would spend
    # minutes on how many there are.
    if size % keys == 0:
        return 2 - 2 * size - (size // keys + 1) % 2, 2, 2 * size
    return 2 - 2 * size, 1, 4 * size


@fx_leaf  # reason: int arguments are Proxies under fx
def axis_distances(size: int, keys: int, pretrain_size: int, like: Tensor) -> Tensor:
    """`log_distances` along one axis."""
    lowest, step, count = distance_range(size, keys)
    twice = (torch.arange(count, device=like.device) * step + lowest).to(like.dtype)
    # Eight at the far side of the map of pre-training, and then one.
    distances = twice * 4 / max(1, pretrain_size - 1)
    return distances.sign() * (distances.abs() + 1).log2() / 3


@fx_leaf  # reason: int arguments are Proxies under fx
def axis_index(size: int, keys: int, like: Tensor) -> Tensor:
    """`pair_index` along one axis: [keys, size]."""
    lowest, step, _ = distance_range(size, keys)
    key = torch.arange(keys, device=like.device)
    first = torch.div(key * size, keys, rounding_mode='floor')
    behind = torch.div((key + 1) * size + keys - 1, keys, rounding_mode='floor')
    twice = 2 * torch.arange(size, device=like.device) - (first + behind - 1).unsqueeze(1)
    return torch.div(twice - lowest, step, rounding_mode='floor')


@fx_leaf  # reason: int arguments are Proxies under fx
def resize_bias(
    bias: Tensor, made: tuple[int, int], made_keys: tuple[int, int], size: tuple[int, int], key_size: tuple[int, int]
) -> Tensor:
    """[N, keys, queries] for one size of the map and its keys -> the same for another, resized where they differ."""
    if made_keys != key_size:
        by_query = bias.transpose(1, 2).unflatten(2, made_keys)
        bias = F.interpolate(by_query, key_size, mode='bilinear').flatten(2).transpose(1, 2)
    if made != size:
        bias = F.interpolate(bias.unflatten(2, made), size, mode='bilinear').flatten(2)
    return bias
