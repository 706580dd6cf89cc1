"""Focal modulation against its definition, position by position."""

import math

import pytest
import torch
from depthwise_definition import correlate
from onlookers import assert_near, over_all_onlookers
from torch import Tensor, nn

from attnzoo.kernels import focal_modulate
from attnzoo.kernels._testing import results
from attnzoo.kernels.focal_modulate import reference


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def by_definition(
    q: Tensor,
    context: Tensor,
    gates: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    normalize: bool = False,
    **kernels: Tensor,
) -> Tensor:
    level, levels = context, []
    for kernel in kernels.values():
        level = gelu(correlate(level, kernel))
        levels.append(level)
    levels.append(gelu(level.mean((1, 2), keepdim=True)).expand_as(level))
    total = (gates[..., None] * torch.stack(levels, -2)).sum(-2)
    if normalize:
        total = total / gates.shape[-1]
    out = torch.einsum('bhwc,dc->bhwd', total, weight)
    return q * (out if bias is None else out + bias)


def ours(
    q: Tensor,
    context: Tensor,
    gates: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    normalize: bool = False,
    **kernels: Tensor,
) -> Tensor:
    return focal_modulate(q, context, gates, list(kernels.values()), weight, bias, normalize)


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

    inputs = {name: new(batch, *size, channels) for name in ('q', 'context')}
    inputs |= dict(gates=new(batch, *size, len(sizes) + 1), weight=new(channels, channels))
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


def d_out_of(inputs) -> Tensor:
    return torch.randn(inputs['q'].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize('case', CASES)
def test_equals_the_definition(case):
    inputs = make_inputs(**CASES[case])
    found, expected = (results(f, inputs, torch.float64, 'cpu', d_out_of(inputs)) for f in (ours, by_definition))
    for name, true in expected.items():
        assert_near(found[name], true, 1e-12)


@pytest.mark.parametrize('images', [1, 2])
def test_by_parts_it_is_the_same(images, monkeypatch):
    inputs = make_inputs(batch=5)
    monkeypatch.setattr(reference, 'PART_NUMBERS', images * inputs['q'][0].numel())
    found, expected = (results(f, inputs, torch.float64, 'cpu', d_out_of(inputs)) for f in (ours, by_definition))
    for name, true in expected.items():
        assert_near(found[name], true, 1e-12)
    with torch.no_grad():
        assert_near(ours(**inputs), expected['output'], 1e-12)


@pytest.mark.parametrize('needed', ['q', 'gates', 'weight', 'bias', 'kernel 0', 'kernel 1'])
def test_only_the_gradients_that_are_needed(needed):
    inputs = make_inputs()
    expected = results(by_definition, inputs, torch.float64, 'cpu', d_out_of(inputs))
    inputs[needed].requires_grad_()
    (found,) = torch.autograd.grad(ours(**inputs), inputs[needed], d_out_of(inputs))
    assert_near(found, expected[f'gradient of {needed}'], 1e-12)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_lower_precision(dtype):
    inputs = make_inputs(size=(9, 10), channels=8)
    exact = results(ours, inputs, torch.float64, 'cpu', d_out_of(inputs))
    for name, found in results(ours, inputs, dtype, 'cpu', d_out_of(inputs)).items():
        assert found.dtype == dtype
        assert_near(found.double(), exact[name], 16 * torch.finfo(dtype).eps)


def test_any_strides_and_no_images():
    inputs = {name: one.float() if isinstance(one, Tensor) else one for name, one in make_inputs().items()}
    maps = [inputs.pop(name) for name in ('q', 'context', 'gates')]
    expected = ours(*maps, **inputs)
    packed = torch.cat(maps, -1).split([3, 3, 3], -1)
    for strided in (packed, [one.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) for one in maps]):
        assert_near(ours(*strided, **inputs), expected)
    inputs['weight'].requires_grad_()
    out = ours(*(one[:0] for one in maps), **inputs)
    (grad,) = torch.autograd.grad(out.sum(), inputs['weight'])
    assert out.shape == (0, 5, 6, 3) and not grad.any()


class Modulation(nn.Module):
    def __init__(self, normalize: bool):
        super().__init__()
        self.first = nn.Parameter(torch.randn(4, 1, 3, 3) / 3)
        self.second = nn.Parameter(torch.randn(4, 1, 5, 5) / 5)
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.bias = nn.Parameter(torch.randn(4))
        self.normalize = normalize

    def forward(self, q: Tensor, context: Tensor, gates: Tensor) -> Tensor:
        return focal_modulate(q, context, gates, [self.first, self.second], self.weight, self.bias, self.normalize)


@pytest.mark.parametrize('normalize', [False, True])
@over_all_onlookers
def test_does_the_same_whoever_looks_on(normalize, looks_on):
    torch.manual_seed(0)
    looks_on(Modulation(normalize), *(torch.randn(3, 6, 7, channels) for channels in (4, 4, 3)))


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(q=torch.zeros(5, 6, 4)), r'q: expected a map \[batch, height, width, channels\], got shape \(5, 6, 4\)'),
        (dict(q=torch.zeros(1, 5, 6, 4, dtype=torch.long)), 'q: expected a floating-point dtype, got torch.int64'),
        (dict(context=torch.zeros(1, 5, 6, 3)), r'context: .* = \[1, 5, 6, 4\], got shape \(1, 5, 6, 3\)'),
        (dict(gates=torch.zeros(1, 5, 6, 2)), r'gates: .*levels \+ 1\] = \[1, 5, 6, 3\], got shape \(1, 5, 6, 2\)'),
        (
            dict(gates=torch.zeros(1, 5, 6, 3).double()),
            'gates: expected the dtype of q, torch.float32, got torch.float64',
        ),
        (dict(kernels=[]), 'kernels: expected one for each level, got none'),
        (
            dict(kernels=[torch.zeros(4, 1, 3, 3), torch.zeros(3, 1, 5, 5)]),
            r'kernels\[1\]: .* the 4 channels of context',
        ),
        (dict(kernels=[torch.zeros(4, 3, 3), torch.zeros(4, 1, 5, 5)]), r'kernels\[0\]: .* got shape \(4, 3, 3\)'),
        (dict(kernels=[torch.zeros(4, 1, 2, 2), torch.zeros(4, 1, 5, 5)]), r'kernels\[0\]: expected a kernel of odd'),
        (dict(weight=torch.zeros(4, 4, 1, 1)), r'weight: expected \[channels, channels\] = \[4, 4\], got shape'),
        (dict(bias=torch.zeros(3)), r'bias: expected \[channels\] = \[4\], got shape \(3,\)'),
        (dict(bias=torch.zeros(4, device='meta')), 'bias: expected the device of q, cpu, got meta'),
    ],
)
def test_bad_input_is_named(changes, message):
    arguments = dict(
        q=torch.zeros(1, 5, 6, 4),
        context=torch.zeros(1, 5, 6, 4),
        gates=torch.zeros(1, 5, 6, 3),
        kernels=[torch.zeros(4, 1, 3, 3), torch.zeros(4, 1, 5, 5)],
        weight=torch.zeros(4, 4),
    )
    with pytest.raises(ValueError, match=message):
        focal_modulate(**(arguments | changes))
