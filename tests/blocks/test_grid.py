"""Grid and block attention against timm's MaxViT."""

import pytest
import torch
from timm.layers import RelPosBiasTf
from timm.models.maxxvit import AttentionCl, grid_partition, grid_reverse, window_partition, window_reverse
from torch import nn

from attnzoo.blocks import BlockAttention, GridAttention


@pytest.mark.parametrize('window', [(4, 4), (2, 3), (8, 12)])
@pytest.mark.parametrize(
    'kind, partition, reverse',
    [(BlockAttention, window_partition, window_reverse), (GridAttention, grid_partition, grid_reverse)],
)
def test_equals_timm(kind, partition, reverse, window):
    """Under the same names, with rectangular windows too; gradients of all parameters."""
    torch.manual_seed(0)
    theirs = AttentionCl(
        24, dim_head=8, head_first=False, rel_pos_cls=lambda **kwargs: RelPosBiasTf(window, **kwargs)
    ).double()
    nn.init.normal_(theirs.rel_pos.relative_position_bias_table)
    ours = kind(24, num_heads=3, window=window, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())

    x = torch.randn(2, 8, 12, 24, dtype=torch.float64)
    weight = torch.randn_like(x)
    expected, out = reverse(theirs(partition(x, window)), window, (8, 12)), ours(x)
    torch.testing.assert_close(out, expected)
    (expected * weight).sum().backward()
    (out * weight).sum().backward()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad)


@pytest.mark.parametrize('size', [(9, 10), (3, 10), (2, 3), (11, 4)])
@pytest.mark.parametrize('kind', [BlockAttention, GridAttention])
def test_padding_has_no_influence(kind, size):
    """On maps that do not divide, each token attends to the real tokens of its window alone."""
    torch.manual_seed(0)
    height, width = size
    module = kind(16, num_heads=2, window=4, dtype=torch.float64)
    nn.init.normal_(module.rel_pos.relative_position_bias_table)
    x = torch.randn(1, height, width, 16, dtype=torch.float64)

    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    row, column = row.flatten(), column.flatten()
    if kind is BlockAttention:
        window, row, column = (row // 4, column // 4), row % 4, column % 4
    else:
        spacing = (height + 3) // 4, (width + 3) // 4
        window = row % spacing[0], column % spacing[1]
        row, column = row // spacing[0], column // spacing[1]
    together = (window[0][:, None] == window[0]) & (window[1][:, None] == window[1])
    bias = module.rel_pos.relative_position_bias_table[:, row - row[:, None] + 3, column - column[:, None] + 3]
    q, k, v = module.qkv(x).view(height * width, 3, 2, 8).permute(1, 2, 0, 3)
    scores = (q @ k.mT * 8**-0.5 + bias).masked_fill(~together, float('-inf'))
    expected = module.proj((scores.softmax(-1) @ v).transpose(0, 1).flatten(1)).view_as(x)
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(num_heads=5), 'num_heads: expected a divisor of 16 channels, got 5'),
        (dict(window=-7), 'window: expected a positive number'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        GridAttention(16, **arguments)
