"""Long and short distance attention against the official blocks of CrossFormer."""

import pytest
import torch
from check import check_block
from torch import nn

from attnzoo.blocks import LongShortAttention


def test_equals_the_official_module():
    module = LongShortAttention(32, num_heads=4, group=4)
    groups = lambda module, x: module(x.view(6, 4, 4, 32)).flatten(1, 2)  # noqa: E731
    assert check_block('crossformer_attention_dpb', module, call=groups)


@pytest.mark.parametrize(
    'name, interval, size',
    [
        ('sda_16x16', 1, (16, 16)),
        ('sda_12x16', 1, (12, 16)),
        ('sda_10x14', 1, (10, 14)),
        ('lda_16x16', 2, (16, 16)),
        ('lda_12x16', 2, (12, 16)),
    ],
)
def test_equals_the_official_block(name, interval, size, transformer_block):
    attention = LongShortAttention(32, num_heads=4, group=4, interval=interval)
    assert check_block(f'crossformer_block_{name}', transformer_block(32, attention, size))


def test_equals_the_official_block_with_activation_cooling(transformer_block):
    """CrossFormer++ puts a depthwise convolution and a norm behind the block, without a residual."""
    module = transformer_block(32, LongShortAttention(32, num_heads=4, group=4), (8, 8))
    module.ex_conv, module.ex_ln = nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.LayerNorm(32)

    def cooled(module, x):
        x = module(x).transpose(1, 2).unflatten(2, module.size)
        return module.ex_ln(module.ex_conv(x).flatten(2).transpose(1, 2))

    assert check_block('crossformer_block_acl', module, call=cooled)


@pytest.mark.parametrize('interval', [1, 2, 4])
@pytest.mark.parametrize('size', [(9, 13), (4, 9), (2, 3)])
def test_each_token_attends_to_the_real_tokens_of_its_group(size, interval):
    torch.manual_seed(0)
    height, width = size
    module = LongShortAttention(32, num_heads=2, group=4, interval=interval, dtype=torch.float64)
    x = torch.randn(1, height, width, 32, dtype=torch.float64)

    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    row, column = row.flatten(), column.flatten()
    group = torch.zeros_like(row), torch.zeros_like(row)
    step = 1
    if min(size) > 4:
        step, tile = interval, 4 * interval
        group = row // tile * interval + row % interval, column // tile * interval + column % interval
    together = (group[0][:, None] == group[0]) & (group[1][:, None] == group[1])
    dy, dx = (row[:, None] - row) // step, (column[:, None] - column) // step
    bias = module.pos((height, width))[(dy + height - 1) * (2 * width - 1) + dx + width - 1].permute(2, 0, 1)
    q, k, v = module.qkv(x).view(height * width, 3, 2, 16).permute(1, 2, 0, 3)
    scores = (q @ k.mT * 16**-0.5 + bias).masked_fill(~together, float('-inf'))
    expected = module.proj((scores.softmax(-1) @ v).transpose(0, 1).flatten(1)).view_as(x)
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(num_heads=5), 'num_heads: expected a divisor of 32 channels, got 5'),
        (dict(group=0), 'group and interval: expected at least 1, got 0 and 1'),
        (dict(interval=0), 'group and interval: expected at least 1, got 7 and 0'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        LongShortAttention(32, **arguments)
