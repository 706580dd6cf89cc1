"""Convolution into overlapping patches: values and gradients against a sum written out, by hand and by PyTorch."""

from unittest.mock import patch

import pytest
import torch
from onlookers import assert_near, over_all_onlookers
from torch import Tensor, nn

from attnzoo.kernels import patch_conv
from attnzoo.kernels._testing import results
from attnzoo.kernels.patch_conv import reference


def by_definition(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 4) -> Tensor:
    """Patch by patch: pixels times weights, where there are pixels."""
    _, _, height, width = x.shape
    kernel = weight.shape[2]
    rows = []
    for y in range(height // stride):
        row = []
        for z in range(width // stride):
            top, left = y * stride - (kernel - stride) // 2, z * stride - (kernel - stride) // 2
            i, j = slice(max(0, top), min(height, top + kernel)), slice(max(0, left), min(width, left + kernel))
            inside = weight[:, :, i.start - top : i.stop - top, j.start - left : j.stop - left]
            row.append(torch.einsum('bcyx,dcyx->bd', x[:, :, i, j], inside))
        rows.append(torch.stack(row, -1))
    out = torch.stack(rows, 2)
    return out if bias is None else out + bias[:, None, None]


def make_inputs(kernel, size=(20, 24), channels=3, bias=True, **settings):
    generator = torch.Generator().manual_seed(0)

    def new(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = {'x': new(2, channels, *size), 'weight': new(5, channels, kernel, kernel), **settings}
    return inputs | {'bias': new(5)} if bias else inputs


CASES = {
    'patches side by side': dict(kernel=4),
    'two bands': dict(kernel=8),
    'four bands': dict(kernel=16),
    'eight bands': dict(kernel=32),
    'without bias': dict(kernel=16, bias=False),
    'no whole bands': dict(kernel=18),
    'pixels left over': dict(kernel=16, size=(19, 31)),
    'one patch': dict(kernel=32, size=(4, 7)),
    'stride 2': dict(kernel=8, stride=2, size=(7, 9)),
    'stride 3': dict(kernel=15, stride=3, size=(7, 9)),
    'stride 1': dict(kernel=5, stride=1, size=(4, 3)),
    'one channel': dict(kernel=16, channels=1),
}


@pytest.mark.parametrize('part_bytes', [1, reference.PART_BYTES])
@pytest.mark.parametrize('case', CASES)
def test_equals_the_definition(case, part_bytes):
    inputs = make_inputs(**CASES[case])
    expected_out = by_definition(**inputs)
    d_out = torch.randn(expected_out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with patch.object(reference, 'PART_BYTES', part_bytes):
        found, expected = (results(f, inputs, torch.float64, 'cpu', d_out) for f in (patch_conv, by_definition))
    for name, true in expected.items():
        assert_near(found[name], true, 1e-12)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize('kernel', [8, 16, 32])
def test_lower_precision(kernel, dtype):
    inputs = make_inputs(kernel)
    d_out = torch.randn(2, 5, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = results(patch_conv, inputs, torch.float64, 'cpu', d_out)
    for name, found in results(patch_conv, inputs, dtype, 'cpu', d_out).items():
        assert found.dtype == dtype
        assert_near(found.double(), exact[name], 8 * torch.finfo(dtype).eps)


def test_any_strides_and_no_images():
    x, weight = torch.randn(2, 6, 20, 24), torch.randn(5, 3, 16, 16, requires_grad=True)
    for part in x.split(3, 1):
        expected = patch_conv(part.contiguous(), weight)
        (expected_grad,) = torch.autograd.grad(expected.square().sum(), weight)
        for same in (part, part.to(memory_format=torch.channels_last), part.mT.contiguous().mT):
            out = patch_conv(same, weight)
            assert_near(out, expected, 1e-6)
            assert_near(torch.autograd.grad(out.square().sum(), weight)[0], expected_grad, 1e-5)
    out = patch_conv(x[:0, :3], weight)
    (grad,) = torch.autograd.grad(out.sum(), weight)
    assert out.shape == (0, 5, 5, 6) and not grad.any()


class Patches(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 16, 16))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return patch_conv(x, self.weight, self.bias, 4)


@over_all_onlookers
def test_does_the_same_whoever_looks_on(looks_on):
    torch.manual_seed(0)
    looks_on(Patches(), torch.randn(3, 3, 12, 20))


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(stride=0), 'stride: expected at least 1, got 0'),
        (dict(x=torch.zeros(3, 8, 8)), r'x: expected a map \[batch, channels, height, width\], got shape \(3, 8, 8\)'),
        (dict(x=torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), 'x: expected a floating-point dtype, got torch.uint8'),
        (dict(x=torch.zeros(1, 3, 8, 3)), 'x: expected at least 4 x 4 pixels, the stride, got 8 x 3'),
        (dict(weight=torch.zeros(5, 4, 8, 8)), r'weight: .* the 3 channels of x, got shape \(5, 4, 8, 8\)'),
        (dict(weight=torch.zeros(5, 3, 8, 4)), r'weight: expected \[channels out, channels, side, side\]'),
        (dict(weight=torch.zeros(5, 3, 7, 7)), r'weight: .* 4 \(the stride\) plus an even number, got 7'),
        (dict(weight=torch.zeros(5, 3, 2, 2)), r'weight: .* 4 \(the stride\) plus an even number, got 2'),
        (dict(bias=torch.zeros(3)), r'bias: expected \[channels out\] = \[5\], got shape \(3,\)'),
        (dict(bias=torch.zeros(5, device='meta')), 'bias: expected the device of x, cpu, got meta'),
    ],
)
def test_bad_input_is_named(changes, message):
    arguments = {'x': torch.zeros(1, 3, 8, 8), 'weight': torch.zeros(5, 3, 8, 8), **changes}
    with pytest.raises(ValueError, match=message):
        patch_conv(**arguments)
