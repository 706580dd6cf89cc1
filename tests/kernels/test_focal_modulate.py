"""Focal modulation against its definition, position by position."""

import math

import pytest
import torch
from depthwise_definition import correlate
from onlookers import assert_near, over_all_onlookers
from torch import Tensor, nn

from attnzoo.kernels import _cpu, focal_modulate
from attnzoo.kernels._testing import results


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def by_definition(x: Tensor, weight: Tensor, bias: Tensor | None = None, normalize: bool = False, **kernels) -> Tensor:
    channels = weight.shape[0]
    q, level, gates = x[..., :channels], x[..., channels : 2 * channels], x[..., 2 * channels :]
    levels = []
    for kernel in kernels.values():
        level = gelu(correlate(level, kernel))
        levels.append(level)
    levels.append(gelu(level.mean((1, 2), keepdim=True)).expand_as(level))
    context = (gates[..., None] * torch.stack(levels, -2)).sum(-2)
    if normalize:
        context = context / gates.shape[-1]
    out = torch.einsum('bhwc,dc->bhwd', context, weight)
    return q * (out if bias is None else out + bias)


def ours(x: Tensor, weight: Tensor, bias: Tensor | None = None, normalize: bool = False, **kernels) -> Tensor:
    return focal_modulate(x, list(kernels.values()), weight, bias, normalize)


def make_inputs(
    sizes: tuple[tuple[int, int], ...] = ((3, 3), (5, 5)),
    size: tuple[int, int] = (5, 6),
    channels: int = 3,
    bias: bool = True,
    normalize: bool = False,
    batch: int = 2,
):
    generator = torch.Generator().manual_seed(0)

    def new(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = dict(x=new(batch, *size, 2 * channels + len(sizes) + 1), weight=new(channels, channels))
    inputs |= {f'kernel {i}': new(channels, 1, *kernel) / 3 for i, kernel in enumerate(sizes)}
    return inputs | dict(bias=new(channels) if bias else None, normalize=normalize)


CASES = {
    'two levels': dict(),
    'three levels, normalised': dict(sizes=((3, 3), (5, 5), (7, 7)), normalize=True),
    'one level, without bias': dict(sizes=((7, 7),), bias=False),
    'kernels that are rectangular or one': dict(sizes=((1, 1), (5, 3))),
    'larger kernels than the map': dict(sizes=((5, 5), (9, 9)), size=(2, 3)),
    'one position, one channel': dict(size=(1, 1), channels=1),
}


@pytest.mark.parametrize('case', CASES)
def test_equals_the_definition(case):
    inputs = make_inputs(**CASES[case])
    shape = (*inputs['x'].shape[:3], inputs['weight'].shape[0])
    d_out = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, expected = (results(f, inputs, torch.float64, 'cpu', d_out) for f in (ours, by_definition))
    for name, true in expected.items():
        assert_near(found[name], true, 1e-12)


@pytest.mark.parametrize('images', [1, 2, 5])
def test_inference_by_parts_is_the_same(images, monkeypatch):
    inputs = make_inputs(batch=5)
    monkeypatch.setattr(_cpu, 'PART_NUMBERS', images * 5 * 6 * 3)
    with torch.no_grad():
        assert_near(ours(**inputs), by_definition(**inputs), 1e-12)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_lower_precision(dtype):
    inputs = make_inputs(size=(9, 10), channels=8)
    d_out = torch.randn((2, 9, 10, 8), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = results(ours, inputs, torch.float64, 'cpu', d_out)
    for name, found in results(ours, inputs, dtype, 'cpu', d_out).items():
        assert found.dtype == dtype
        assert_near(found.double(), exact[name], 16 * torch.finfo(dtype).eps)


def test_any_strides_and_no_images():
    inputs = {name: one.float() if isinstance(one, Tensor) else one for name, one in make_inputs().items()}
    x = inputs.pop('x')
    expected = ours(x, **inputs)
    assert expected.is_contiguous()
    for strided in (x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1), torch.cat([x, x], 3)[..., : x.shape[3]]):
        assert_near(ours(strided, **inputs), expected)
    weight = inputs.pop('weight').requires_grad_()
    out = ours(x[:0], weight, **inputs)
    (grad,) = torch.autograd.grad(out.sum(), weight)
    assert out.shape == (0, 5, 6, 3) and not grad.any()


class Modulation(nn.Module):
    def __init__(self, normalize: bool):
        super().__init__()
        self.first = nn.Parameter(torch.randn(4, 1, 3, 3) / 3)
        self.second = nn.Parameter(torch.randn(4, 1, 5, 5) / 5)
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.bias = nn.Parameter(torch.randn(4))
        self.normalize = normalize

    def forward(self, x: Tensor) -> Tensor:
        return focal_modulate(x, [self.first, self.second], self.weight, self.bias, self.normalize)


@pytest.mark.parametrize('normalize', [False, True])
@over_all_onlookers
def test_does_the_same_whoever_looks_on(normalize, looks_on):
    torch.manual_seed(0)
    looks_on(Modulation(normalize), torch.randn(3, 6, 7, 11))


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(x=torch.zeros(5, 6, 11)), r'x: expected a map \[batch, height, width, 2 \* channels \+ levels \+ 1\]'),
        (dict(x=torch.zeros(1, 5, 6, 11, dtype=torch.long)), 'x: expected a floating-point dtype, got torch.int64'),
        (dict(x=torch.zeros(1, 5, 6, 12)), r'x: expected 2 \* channels \+ 3 for the 2 levels of kernels, got 12'),
        (dict(x=torch.zeros(1, 5, 6, 3)), r'x: expected 2 \* channels \+ 3 for the 2 levels of kernels, got 3'),
        (dict(kernels=[]), 'kernels: expected one for each level, got none'),
        (dict(kernels=[torch.zeros(4, 1, 3, 3), torch.zeros(3, 1, 5, 5)]), r'kernels\[1\]: expected \[channels, 1'),
        (dict(kernels=[torch.zeros(4, 3, 3), torch.zeros(4, 1, 5, 5)]), r'kernels\[0\]: .* got shape \(4, 3, 3\)'),
        (dict(kernels=[torch.zeros(4, 1, 2, 2), torch.zeros(4, 1, 5, 5)]), r'kernels\[0\]: expected a kernel of odd'),
        (dict(weight=torch.zeros(4, 4, 1, 1)), r'weight: expected \[channels, channels\] = \[4, 4\], got shape'),
        (dict(bias=torch.zeros(3)), r'bias: expected \[channels\] = \[4\], got shape \(3,\)'),
        (dict(bias=torch.zeros(4, device='meta')), 'bias: expected the device of x, cpu, got meta'),
    ],
)
def test_bad_input_is_named(changes, message):
    arguments = dict(
        x=torch.zeros(1, 5, 6, 11),
        kernels=[torch.zeros(4, 1, 3, 3), torch.zeros(4, 1, 5, 5)],
        weight=torch.zeros(4, 4),
    )
    with pytest.raises(ValueError, match=message):
        focal_modulate(**(arguments | changes))
