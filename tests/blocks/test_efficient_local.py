"""Efficient local attention against the paper's formula, of which no code was published."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attnzoo.blocks import EfficientLocalAttention


def by_formula(x: Tensor, weights: dict[str, Tensor], groups: int, num_groups: int) -> Tensor:
    """Strips of rows and columns; a convolution along each, a group norm, a sigmoid; their product."""

    def gate(strips: Tensor, conv: str, norm: str) -> Tensor:
        kernel = weights[f'{conv}.weight']
        out = F.conv1d(strips, kernel, padding=kernel.shape[2] // 2, groups=groups)
        return F.group_norm(out, num_groups, weights[f'{norm}.weight'], weights[f'{norm}.bias']).sigmoid()

    separate = '_w' if 'conv_w.weight' in weights else ''
    gate_h, gate_w = gate(x.mean(3), 'conv', 'gn'), gate(x.mean(2), f'conv{separate}', f'gn{separate}')
    return x * gate_h.unsqueeze(3) * gate_w.unsqueeze(2)


@pytest.mark.parametrize('separate', [False, True])
@pytest.mark.parametrize(
    'variant, kernel, groups, num_groups', [('T', 5, 64, 32), ('B', 7, 64, 16), ('S', 5, 8, 16), ('L', 7, 8, 16)]
)
def test_variants_are_those_of_the_paper(variant, kernel, groups, num_groups, separate):
    torch.manual_seed(0)
    module = EfficientLocalAttention(64, variant, separate=separate).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    assert module.conv.weight.shape == (64, 64 // groups, kernel)
    x = torch.randn(2, 64, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(module(x), by_formula(x, module.state_dict(), groups, num_groups))


def test_parameters_of_the_paper():
    """One convolution and one norm: 7 weights and an affine pair for each channel."""
    assert sum(p.numel() for p in EfficientLocalAttention(256).parameters()) == 256 * (7 + 2)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(variant='M'), "variant: expected one of 'T', 'B', 'S', 'L', got 'M'"),
        (dict(kernel_size=4), 'kernel_size: expected an odd number, got 4'),
        (dict(groups=7), 'groups: expected a divisor of 24 channels, got 7'),
        (dict(num_groups=16), 'num_groups: expected a divisor of 24 channels, got 16'),
        (dict(), 'num_groups: expected a divisor of 24 channels, got 16'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        EfficientLocalAttention(24, **arguments)


def test_groups_of_eight_need_a_multiple_of_eight_channels():
    with pytest.raises(ValueError, match="variant: 'S' has groups of 8 channels, got 20 channels"):
        EfficientLocalAttention(20, 'S', num_groups=4)
