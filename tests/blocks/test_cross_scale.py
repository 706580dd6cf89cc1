"""The cross-scale embedding against its definition; the tests of CrossFormer compare it with the official one."""

import pytest
import torch
from torch import nn

from attnzoo.blocks import CrossScaleEmbedding


@pytest.mark.parametrize('channels_first', [False, True])
@pytest.mark.parametrize('norm_first', [False, True])
def test_patches_of_each_size_have_the_same_centres(norm_first, channels_first):
    """Channel by channel: what each kernel gives for a patch, cut out of the padded map."""
    torch.manual_seed(0)
    kernels, stride = (4, 8, 16), 4
    module = CrossScaleEmbedding(3, 8, kernels, stride, norm_first, channels_first, dtype=torch.float64)
    torch.nn.init.normal_(module.norm.weight), torch.nn.init.normal_(module.norm.bias)
    x = torch.randn(2, 12, 21, 3, dtype=torch.float64)
    padded = nn.functional.pad(module.norm(x) if norm_first else x, (0, 0, 6, 6, 6, 6))
    expected = torch.empty(2, 3, 5, 8, dtype=torch.float64)
    for row in range(3):
        for column in range(5):
            parts = []
            for kernel, proj in zip(kernels, module.projs, strict=True):
                top, left = stride * row + 8 - kernel // 2, stride * column + 8 - kernel // 2
                patch = padded[:, top : top + kernel, left : left + kernel]
                parts.append(torch.einsum('byxc,dcyx->bd', patch, proj.weight) + proj.bias)
            expected[:, row, column] = torch.cat(parts, 1)
    assert [proj.weight.shape[0] for proj in module.projs] == [4, 2, 2]
    expected = expected if norm_first else module.norm(expected)
    out = module(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if channels_first else module(x)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize('size', [(4, 4), (13, 30)])
def test_any_size(size):
    """Patches that do not fit any more are left out, by all kernels alike."""
    assert CrossScaleEmbedding(3, 64)(torch.randn(1, *size, 3)).shape == (1, size[0] // 4, size[1] // 4, 64)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(kernels=(4, 7)), r'kernels: expected sizes of 4 \(the stride\) plus an even number, got \(4, 7\)'),
        (dict(kernels=(2, 4)), 'kernels: expected sizes of 4'),
        (dict(kernels=()), 'kernels: expected sizes of 4'),
        (dict(dim_out=12), 'dim_out: expected a multiple of 8 for 4 kernels, got 12'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CrossScaleEmbedding(3, **{'dim_out': 64, **arguments})
