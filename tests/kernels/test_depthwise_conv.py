"""Depthwise convolution: values and gradients against a sum written out, by hand and by PyTorch."""

import pytest
import torch
from depthwise_definition import correlate
from onlookers import assert_near, over_all_onlookers
from torch import Tensor, nn

from attnzoo.kernels import depthwise_conv
from attnzoo.kernels._testing import results
from attnzoo.kernels.depthwise_conv import reference


def by_definition(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual=False, dilation: int = 1) -> Tensor:
    out = correlate(x, weight, bias, dilation)
    return x + out if residual else out


def make_inputs(
    kernel: tuple[int, int] = (3, 3), size: tuple[int, int] = (5, 6), channels: int = 3, bias: bool = True, **settings
):
    generator = torch.Generator().manual_seed(0)

    def new(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = {'x': new(2, *size, channels), 'weight': new(channels, 1, *kernel), **settings}
    return inputs | {'bias': new(channels)} if bias else inputs


CASES = {
    '1 x 1': dict(kernel=(1, 1)),
    '3 x 3': dict(),
    '3 x 3, residual': dict(residual=True),
    '5 x 5, larger than the map': dict(kernel=(5, 5), size=(3, 2)),
    '5 x 5, residual, without bias': dict(kernel=(5, 5), residual=True, bias=False),
    '7 x 7': dict(kernel=(7, 7), size=(8, 5)),
    '3 x 7': dict(kernel=(3, 7), size=(4, 5)),
    '1 x 5, which has no pieces of 3 x 3': dict(kernel=(1, 5), size=(2, 5)),
    '7 x 7, several parts': dict(kernel=(7, 7), channels=5),
    '3 x 5': dict(kernel=(3, 5)),
    '1 x 5, residual': dict(kernel=(1, 5), residual=True),
    '3 x 3, dilation 2': dict(dilation=2),
    '3 x 1, dilation 2, residual': dict(kernel=(3, 1), dilation=2, residual=True),
    '7 x 7, dilation 3': dict(kernel=(7, 7), dilation=3, size=(9, 7)),
    '5 x 5, dilation 4, larger than the map': dict(kernel=(5, 5), dilation=4, size=(3, 2), bias=False),
    '1 x 1, dilation 3': dict(kernel=(1, 1), dilation=3),
    'one channel': dict(kernel=(5, 5), channels=1),
}


@pytest.mark.parametrize('case', CASES)
def test_equals_the_definition(case, monkeypatch):
    if 'parts' in case:
        monkeypatch.setattr(reference, 'PART_NUMBERS', 1)
    inputs = make_inputs(**CASES[case])
    d_out = torch.randn(inputs['x'].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, expected = (results(f, inputs, torch.float64, 'cpu', d_out) for f in (depthwise_conv, by_definition))
    for name, true in expected.items():
        assert_near(found[name], true, 1e-12)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize('kernel, dilation', [(3, 1), (5, 1), (7, 1), (3, 2), (7, 3)])
def test_lower_precision(kernel, dilation, dtype):
    inputs = make_inputs((kernel, kernel), (9, 10), 8, residual=True, dilation=dilation)
    d_out = torch.randn(inputs['x'].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = results(depthwise_conv, inputs, torch.float64, 'cpu', d_out)
    for name, found in results(depthwise_conv, inputs, dtype, 'cpu', d_out).items():
        assert found.dtype == dtype
        assert_near(found.double(), exact[name], 8 * torch.finfo(dtype).eps)


def test_any_strides_and_no_images():
    packed = torch.randn(2, 5, 6, 12)
    weight = torch.randn(4, 1, 5, 5, requires_grad=True)
    for dilation, part in enumerate(packed.split(4, -1), 1):
        out = depthwise_conv(part, weight, dilation=dilation)
        assert out.is_contiguous()
        for same in (part.contiguous(), part.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)):
            assert_near(depthwise_conv(same, weight, dilation=dilation), out, 1e-6)
        out = depthwise_conv(part[:0], weight, dilation=dilation)
        (grad,) = torch.autograd.grad(out.sum(), weight)
        assert out.shape == (0, 5, 6, 4) and not grad.any()


@pytest.mark.parametrize('dilation', [1, 3])
def test_only_the_gradients_that_are_needed(dilation):
    x, weight, bias = (value.requires_grad_() for value in make_inputs((5, 5)).values())
    grad = torch.randn_like(x)
    expected = torch.autograd.grad(depthwise_conv(x, weight, bias, dilation=dilation), (x, weight, bias), grad)
    for needed, true in zip((x, weight, bias), expected, strict=True):
        inputs = (one if one is needed else one.detach() for one in (x, weight, bias))
        (found,) = torch.autograd.grad(depthwise_conv(*inputs, dilation=dilation), needed, grad)
        assert_near(found, true, 1e-12)


class Convolution(nn.Module):
    def __init__(self, kernel: int, residual: bool, dilation: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 1, kernel, kernel))
        self.bias = nn.Parameter(torch.randn(8))
        self.residual = residual
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv(x, self.weight, self.bias, self.residual, self.dilation)


@pytest.mark.parametrize('kernel, residual, dilation', [(3, True, 1), (5, False, 1), (5, True, 2)])
@over_all_onlookers
def test_does_the_same_whoever_looks_on(kernel, residual, dilation, looks_on):
    torch.manual_seed(0)
    looks_on(Convolution(kernel, residual, dilation), torch.randn(3, 6, 7, 8))


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(x=torch.zeros(5, 6, 4)), r'x: expected a map \[batch, height, width, channels\], got shape \(5, 6, 4\)'),
        (dict(x=torch.zeros(1, 5, 6, 4, dtype=torch.long)), 'x: expected a floating-point dtype, got torch.int64'),
        (dict(weight=torch.zeros(3, 1, 3, 3)), r'weight: .* the 4 channels of x, got shape \(3, 1, 3, 3\)'),
        (dict(weight=torch.zeros(4, 4, 3, 3)), r'weight: expected \[channels, 1, height, width\]'),
        (dict(weight=torch.zeros(4, 1, 3, 4)), r'weight: expected a kernel of odd height and width, got \(3, 4\)'),
        (dict(bias=torch.zeros(3)), r'bias: expected \[channels\] = \[4\], got shape \(3,\)'),
        (dict(dilation=0), 'dilation: expected at least 1, got 0'),
        (dict(bias=torch.zeros(4, device='meta')), 'bias: expected the device of x, cpu, got meta'),
    ],
)
def test_bad_input_is_named(changes, message):
    arguments = {'x': torch.zeros(1, 5, 6, 4), 'weight': torch.zeros(4, 1, 3, 3)} | changes
    with pytest.raises(ValueError, match=message):
        depthwise_conv(**arguments)
