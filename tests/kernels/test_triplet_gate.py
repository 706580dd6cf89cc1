"""Triplet attention: values and gradients against a definition written out, by hand and by PyTorch."""

from contextlib import nullcontext

import pytest
import torch
from gate_definitions import behind, spatial_gate
from onlookers import SeesAll, assert_near, over_all_onlookers
from torch import Tensor, nn

from attnzoo.kernels import _gates, triplet_gate
from attnzoo.kernels._testing import assert_as_exact_as, results


def by_definition(
    x: Tensor,
    conv_weights: list[Tensor],
    norm_weights: list[Tensor] | None = None,
    norm_biases: list[Tensor] | None = None,
    running_means: list[Tensor] | None = None,
    running_vars: list[Tensor] | None = None,
    training: bool = False,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """Turned so that the pooled axis takes the place of the channels, gated there, and turned back."""
    out = 0
    for i, (a, b) in enumerate(((1, 2), (1, 3), (1, 1))[: len(conv_weights)]):
        turned = x.transpose(a, b)
        lists = norm_weights, norm_biases, running_means, running_vars
        norm = (None if values is None else values[i] for values in lists)
        gated = turned * spatial_gate(turned, 1, conv_weights[i], *norm, training, eps).unsqueeze(1)
        out = out + gated.transpose(a, b)
    return behind(out / len(conv_weights), residual, activation)


def of_lists(function, fixed):
    """The function with the tensors of its lists as arguments of their own, as `results` wants them."""

    def call(**arguments):
        lists = {}
        for name in list(arguments):
            if name[-1].isdigit():
                lists.setdefault(name[:-1], []).append(arguments.pop(name))
        return function(**arguments, **lists, **fixed)

    return call


def make_inputs(
    channels: int = 6,
    size: tuple[int, int] = (5, 4),
    gates: int = 3,
    kernel: tuple[int, int] = (3, 3),
    norm: bool = True,
    statistics: bool = True,
    residual: bool = False,
    channels_last: bool = False,
    ties: bool = False,
    batch: int = 3,
    **settings,
):
    generator = torch.Generator().manual_seed(0)

    def new(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = {'x': new(batch, channels, *size), **settings}
    if ties:
        inputs['x'] = inputs['x'].round()
    if channels_last:
        inputs['x'] = inputs['x'].contiguous(memory_format=torch.channels_last)
    for i in range(gates):
        inputs[f'conv_weights{i}'] = new(1, 2, *kernel)
        if norm:
            inputs |= {f'norm_weights{i}': new(1), f'norm_biases{i}': new(1)}
    if residual:
        inputs['residual'] = new(batch, channels, *size)
    fixed = {}
    if statistics:
        fixed = {name: [new(1).abs() for _ in range(gates)] for name in ('running_means', 'running_vars')}
    return inputs, fixed


def gradient_like(x: Tensor) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


CASES = {
    'NCHW': dict(),
    'channels last': dict(channels_last=True),
    'statistics of the batch': dict(training=True),
    'statistics of the batch, channels last': dict(training=True, channels_last=True, eps=0.1),
    'no running statistics': dict(statistics=False),
    'without norm weights': dict(norm=False),
    'two gates': dict(gates=2, residual=True),
    'two gates, channels last': dict(gates=2, channels_last=True),
    'ties': dict(ties=True),
    'ties, channels last': dict(ties=True, channels_last=True, residual=True, activation='relu'),
    'residual, ReLU': dict(residual=True, activation='relu'),
    'residual, SiLU': dict(residual=True, activation='silu'),
    'a rectangular kernel, larger than the map': dict(kernel=(3, 7), size=(2, 5)),
    'a wide map': dict(size=(3, 39), channels=3),
    'a high map, channels last': dict(size=(18, 3), channels=17, channels_last=True, ties=True),
    'a wide map, ties': dict(size=(17, 21), channels=3, batch=1, ties=True),
    'one position': dict(size=(1, 1)),
    'one channel': dict(channels=1),
}


@pytest.mark.parametrize('looks_on', [nullcontext, SeesAll], ids=['by hand', 'plain'])
@pytest.mark.parametrize('case', CASES)
def test_equals_the_definition(case, looks_on):
    inputs, fixed = make_inputs(**CASES[case])
    d_out = gradient_like(inputs['x'])
    expected = results(of_lists(by_definition, fixed), inputs, torch.float64, 'cpu', d_out)
    with looks_on():
        found = results(of_lists(triplet_gate, fixed), inputs, torch.float64, 'cpu', d_out)
    for name, true in expected.items():
        assert_near(found[name], true, 1e-12)


def test_training_updates_the_running_statistics_once():
    inputs, fixed = make_inputs(training=True, momentum=0.3)
    before = [one.clone() for one in fixed['running_means']]
    call, x = of_lists(triplet_gate, fixed), inputs.pop('x').requires_grad_()
    out = call(x=x, **inputs)
    after = [one.clone() for one in fixed['running_means']]
    assert not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    (expected,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    torch.autograd.grad(expected.square().sum(), x)
    assert all(torch.equal(one, other) for one, other in zip(fixed['running_means'], after, strict=True))
    with SeesAll():
        fixed['running_means'] = before
        call(x=x, **inputs)
    for one, other in zip(before, after, strict=True):
        assert_near(one, other, 1e-12)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize('channels_last', [False, True])
def test_lower_precision(channels_last, dtype):
    """By hand it is about as exact as in PyTorch's own operations."""
    inputs, fixed = make_inputs(size=(17, 18), residual=True, activation='relu', channels_last=channels_last)
    inputs = {name: x.to(dtype).double() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    d_out = gradient_like(inputs['x'])
    exact = results(of_lists(triplet_gate, fixed), inputs, torch.float64, 'cpu', d_out)
    low = of_lists(triplet_gate, {name: [x.to(dtype) for x in values] for name, values in fixed.items()})
    with SeesAll():
        plain = results(low, inputs, dtype, 'cpu', d_out)
    assert_as_exact_as(results(low, inputs, dtype, 'cpu', d_out), plain, exact, dtype)


@pytest.mark.parametrize('channels_last', [False, True])
def test_parts_any_strides_and_no_images(channels_last, monkeypatch):
    inputs, fixed = make_inputs(residual=True, activation='relu', batch=5, channels_last=channels_last)
    gate = of_lists(triplet_gate, fixed)
    d_out = gradient_like(inputs['x'])
    expected = results(gate, inputs, torch.float64, 'cpu', d_out)
    monkeypatch.setattr(_gates, 'PART_BYTES', 2 * inputs['x'][0].numel() * 8)  # two images, two and one
    for name, found in results(gate, inputs, torch.float64, 'cpu', d_out).items():
        assert_near(found, expected[name], 1e-12)
    x = inputs['x']
    for other in (x.transpose(2, 3).contiguous().transpose(2, 3), torch.cat([x, x], 3)[..., :4]):
        assert_near(gate(**dict(inputs, x=other)), expected['output'], 1e-12)
    form = torch.channels_last if channels_last else torch.contiguous_format
    assert gate(**inputs).is_contiguous(memory_format=form)
    empty = {name: value[:0] if name in ('x', 'residual') else value for name, value in inputs.items()}
    leaf = empty['x'].requires_grad_()
    out = gate(**empty)
    out.sum().backward()
    assert out.shape == leaf.grad.shape == (0, 6, 5, 4)


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(2, 1, 3, bias=False) for _ in range(3))
        self.norm1, self.norm2, self.norm3 = (nn.BatchNorm2d(1) for _ in range(3))

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return triplet_gate(
            x,
            [self.conv1.weight, self.conv2.weight, self.conv3.weight],
            [self.norm1.weight, self.norm2.weight, self.norm3.weight],
            [self.norm1.bias, self.norm2.bias, self.norm3.bias],
            [self.norm1.running_mean, self.norm2.running_mean, self.norm3.running_mean],
            [self.norm1.running_var, self.norm2.running_var, self.norm3.running_var],
            residual=residual,
            activation='relu',
        )


@over_all_onlookers
def test_does_the_same_whoever_looks_on(looks_on):
    torch.manual_seed(0)
    looks_on(Gate().eval(), torch.randn(3, 8, 6, 7), torch.randn(3, 8, 6, 7))


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(x=torch.zeros(2, 49, 6)), r'x: expected a map \[batch, channels, height, width\], got'),
        (dict(x=torch.zeros(2, 6, 5, 0)), r'x: expected a map of one .* at least, got shape \(2, 6, 5, 0\)'),
        (dict(conv_weights=[torch.zeros(1, 2, 3, 3)]), 'conv_weights: expected three gates or, .*, two, got 1'),
        (dict(conv_weights=[torch.zeros(1, 1, 3, 3)] * 3), r'conv_weights\[0\]: expected \[1, 2, .*, got shape'),
        (dict(conv_weights=[torch.zeros(1, 2, 3, 4)] * 3), r'conv_weights\[0\]: expected a kernel of odd .*, got'),
        (dict(norm_weights=[torch.zeros(1)] * 2), 'norm_weights: expected one for each of the 3 .*, got 2'),
        (dict(norm_biases=[torch.zeros(1), torch.zeros(6), torch.zeros(1)]), r'norm_biases\[1\]: expected \[1\]'),
        (
            dict(running_means=[torch.zeros(1)] * 3),
            r'running_vars\[0\]: expected it and running_means\[0\], or',
        ),
        (dict(norm_biases=[torch.zeros(1, device='meta')] * 3), r'norm_biases\[0\]: expected the device of x, cpu'),
        (dict(residual=torch.zeros(6, 5, 4)), r'residual: expected .* = \[2, 6, 5, 4\], got shape'),
        (dict(activation='none'), "activation: expected one of 'relu', .*, got 'none'"),
    ],
)
def test_bad_input_is_named(changes, message):
    arguments = {'x': torch.zeros(2, 6, 5, 4), 'conv_weights': [torch.zeros(1, 2, 3, 3)] * 3}
    with pytest.raises(ValueError, match=message):
        triplet_gate(**(arguments | changes))
