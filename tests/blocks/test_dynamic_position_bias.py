"""The dynamic position bias against its definition; test_long_short.py has the comparison with the official one."""

import pytest
import torch

from attnzoo.blocks import DynamicPositionBias
from attnzoo.blocks.window import relative_position_index


@pytest.mark.parametrize('window', [(1, 1), (3, 5), (7, 7)])
def test_each_pair_takes_the_bias_of_its_offset(window):
    """From the query at (y, x) to the key at (v, u) the MLP is fed (y - v, x - u)."""
    torch.manual_seed(0)
    module = DynamicPositionBias(64, num_heads=3, dtype=torch.float64)
    bias = module(window)[relative_position_index(window)]

    tokens = torch.cartesian_prod(torch.arange(window[0]), torch.arange(window[1])).double()
    x = module.pos_proj(tokens[:, None] - tokens)
    for layer in (module.pos1, module.pos2, module.pos3):
        normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        x = layer[2]((normed * layer[0].weight + layer[0].bias).clamp(min=0))
    assert x.shape == (window[0] * window[1],) * 2 + (3,)
    torch.testing.assert_close(bias, x)


def test_the_table_of_a_window_holds_those_of_smaller_ones():
    module = DynamicPositionBias(32, num_heads=2)
    large, small = module((5, 6)).view(9, 11, 2), module((2, 4)).view(3, 7, 2)
    torch.testing.assert_close(small, large[3:6, 2:9])


def test_dtype_and_device():
    assert DynamicPositionBias(32, num_heads=2, dtype=torch.bfloat16)((3, 3)).dtype == torch.bfloat16
    assert DynamicPositionBias(32, num_heads=2, device='meta')((3, 4)).shape == (35, 2)


def test_too_few_channels():
    with pytest.raises(ValueError, match=r'dim: expected at least 16 channels, .* got 8'):
        DynamicPositionBias(8, num_heads=2)
