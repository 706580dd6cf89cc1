"""Gates of channels: values and gradients against definitions written out, by hand and by PyTorch."""

import math
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from gate_definitions import ACTIVATE, behind
from onlookers import ONLOOKERS, SeesAll, assert_near, over_all_onlookers
from torch import Tensor, nn

from attnzoo.kernels import _gates, channel_gate
from attnzoo.kernels._gates import ACTIVATIONS
from attnzoo.kernels._testing import assert_as_exact_as, results


def by_definition(
    x: Tensor,
    fc1_weight: Tensor | None = None,
    fc2_weight: Tensor | None = None,
    fc1_bias: Tensor | None = None,
    fc2_bias: Tensor | None = None,
    conv_weight: Tensor | None = None,
    filters: Tensor | None = None,
    add_max: bool = False,
    act: str = 'relu',
    gate: str = 'sigmoid',
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """Image by image, channel by channel."""
    images = []
    for image in x:
        pooled = []
        for c, channel in enumerate(image):
            value = channel.mean() if filters is None else (averaged(channel, filters.shape[1:]) * filters[c]).sum()
            if add_max:
                value = (value + channel[channel == channel.max()].mean()) / 2
            pooled.append(value)
        if conv_weight is None:
            line = torch.stack(pooled)
            hidden = (fc1_weight * line).sum(1) + (0 if fc1_bias is None else fc1_bias)
            scores = (fc2_weight * ACTIVATE[act](hidden)).sum(1) + (0 if fc2_bias is None else fc2_bias)
        else:
            size = conv_weight.shape[2]
            padded = [0.0] * (size // 2) + pooled + [0.0] * (size // 2)
            scores = torch.stack(
                [sum(conv_weight[0, 0, i] * padded[c + i] for i in range(size)) for c in range(len(pooled))]
            )
        images.append(image * ACTIVATE[gate](scores)[:, None, None])
    return behind(torch.stack(images), residual, activation)


def averaged(channel: Tensor, size: tuple[int, int]) -> Tensor:
    """A channel [H, W] averaged over areas that cover it and may overlap."""
    rows, columns = (
        [range(i * length // n, math.ceil((i + 1) * length / n)) for i in range(n)]
        for length, n in zip(channel.shape, size, strict=True)
    )
    return torch.stack(
        [torch.stack([channel[r.start : r.stop, c.start : c.stop].mean() for c in columns]) for r in rows]
    )


def make_inputs(
    channels: int = 6,
    size: tuple[int, int] = (5, 4),
    hidden: int = 3,
    bias: bool = True,
    conv: int | None = None,
    filters: tuple[int, int] | None = None,
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
    if ties:  # three or four values
        inputs['x'] = inputs['x'].round()
    if channels_last:
        inputs['x'] = inputs['x'].contiguous(memory_format=torch.channels_last)
    if conv is None:
        inputs |= {'fc1_weight': new(hidden, channels), 'fc2_weight': new(channels, hidden)}
        if bias:
            inputs |= {'fc1_bias': new(hidden), 'fc2_bias': new(channels)}
    else:
        inputs['conv_weight'] = new(1, 1, conv)
    if filters is not None:
        inputs['filters'] = new(channels, *filters)
    if residual:
        inputs['residual'] = new(batch, channels, *size)
    return inputs


CASES = {
    'SE': dict(),
    'SE, channels last': dict(channels_last=True),
    'SE, without biases': dict(bias=False),
    'SE, maximum': dict(add_max=True),
    'SE, maximum, channels last, ties': dict(add_max=True, channels_last=True, ties=True),
    'SE, hard gate': dict(gate='hard_sigmoid', act='hard_swish'),
    'SE, residual': dict(residual=True),
    'SE, residual, ReLU': dict(residual=True, activation='relu'),
    'SE, residual, ReLU, channels last': dict(residual=True, activation='relu', channels_last=True),
    'SE, ReLU': dict(activation='relu', ties=True),
    'SE, residual, SiLU': dict(residual=True, activation='silu', channels_last=True),
    'ECA, 3': dict(conv=3),
    'ECA, 5, channels last': dict(conv=5, channels_last=True),
    'ECA, wider than the channels': dict(conv=9),
    'FcaNet': dict(filters=(5, 4), bias=False),
    'FcaNet, channels last': dict(filters=(5, 4), bias=False, channels_last=True),
    'FcaNet, larger map': dict(filters=(3, 3), bias=False, residual=True, activation='relu'),
    'FcaNet, smaller map, maximum': dict(filters=(7, 6), bias=False, add_max=True, channels_last=True),
    'one position': dict(size=(1, 1), add_max=True),
    'one channel': dict(channels=1, conv=3),
    **{f'hidden {name}': dict(act=name, size=(2, 2)) for name in ACTIVATIONS},
    **{f'behind {name}': dict(activation=name, size=(2, 2), residual=True) for name in ACTIVATIONS},
}


@pytest.mark.parametrize('looks_on', [nullcontext, SeesAll], ids=['by hand', 'plain'])
@pytest.mark.parametrize('case', CASES)
def test_equals_the_definition(case, looks_on):
    inputs = make_inputs(**CASES[case])
    fixed = {'filters': inputs.pop('filters')} if 'filters' in inputs else {}
    d_out = torch.randn(inputs['x'].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = results(partial(by_definition, **fixed), inputs, torch.float64, 'cpu', d_out)
    with looks_on():
        found = results(partial(channel_gate, **fixed), inputs, torch.float64, 'cpu', d_out)
    # PyTorch's gradients of the hard activations have a sixth in float32.
    tolerance = 1e-7 if 'hard' in case else 1e-12
    for name, true in expected.items():
        assert_near(found[name], true, tolerance)


def test_filters_may_be_learned():
    inputs = make_inputs(filters=(3, 2), residual=True)
    d_out = torch.randn(inputs['x'].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, expected = (results(f, inputs, torch.float64, 'cpu', d_out) for f in (channel_gate, by_definition))
    for name, true in expected.items():
        assert_near(found[name], true, 1e-12)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize('case', ['SE, maximum', 'SE, residual, ReLU, channels last', 'FcaNet, larger map'])
def test_lower_precision(case, dtype):
    """By hand it is about as exact as in PyTorch's own operations."""
    inputs = make_inputs(**CASES[case])
    inputs = {name: x.to(dtype).double() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    fixed = {'filters': inputs.pop('filters')} if 'filters' in inputs else {}
    d_out = torch.randn(inputs['x'].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = results(partial(channel_gate, **fixed), inputs, torch.float64, 'cpu', d_out)
    low = partial(channel_gate, **{name: x.to(dtype) for name, x in fixed.items()})
    with SeesAll():
        plain = results(low, inputs, dtype, 'cpu', d_out)
    assert_as_exact_as(results(low, inputs, dtype, 'cpu', d_out), plain, exact, dtype)


def test_weights_may_be_more_exact_than_the_map():
    inputs = make_inputs(conv=3)
    exact = channel_gate(**inputs)
    found = channel_gate(inputs['x'].bfloat16(), conv_weight=inputs['conv_weight'].float())
    assert found.dtype == torch.bfloat16
    assert_near(found.double(), exact, 0.02)


@pytest.mark.parametrize('channels_last', [False, True])
def test_parts_any_strides_and_no_images(channels_last, monkeypatch):
    inputs = make_inputs(add_max=True, residual=True, activation='relu', batch=5, channels_last=channels_last)
    d_out = torch.randn(inputs['x'].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = results(channel_gate, inputs, torch.float64, 'cpu', d_out)
    monkeypatch.setattr(_gates, 'PART_BYTES', 2 * inputs['x'][0].numel() * 8)  # two images, two and one
    for name, found in results(channel_gate, inputs, torch.float64, 'cpu', d_out).items():
        assert_near(found, expected[name], 1e-12)

    def strided(x):
        axis = 3 if channels_last else 1
        return torch.cat([x, x], axis).narrow(axis, 0, x.shape[axis])

    x = inputs['x']
    for other in (strided(x), x.transpose(2, 3).contiguous().transpose(2, 3), x[:1].expand(5, -1, -1, -1)):
        found = channel_gate(**dict(inputs, x=other, residual=strided(inputs['residual'])))
        assert_near(found, by_definition(**dict(inputs, x=other)), 1e-12)
    form = torch.channels_last if channels_last else torch.contiguous_format
    out = channel_gate(**inputs)
    assert out.is_contiguous(memory_format=form)
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    channel_gate(**dict(inputs, x=leaf)).mean((2, 3)).sum().backward()  # its gradient is expanded
    assert leaf.grad.is_contiguous(memory_format=form)

    empty = {name: value[:0] if name in ('x', 'residual') else value for name, value in inputs.items()}
    leaf = empty['x'].requires_grad_()
    out = channel_gate(**empty)
    out.sum().backward()
    assert out.shape == leaf.grad.shape == (0, 6, 5, 4)


class Gate(nn.Module):
    def __init__(self, add_max: bool):
        super().__init__()
        self.fc1_weight = nn.Parameter(torch.randn(3, 8))
        self.fc2_weight = nn.Parameter(torch.randn(8, 3))
        self.fc1_bias = nn.Parameter(torch.randn(3))
        self.fc2_bias = nn.Parameter(torch.randn(8))
        self.add_max = add_max

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return channel_gate(
            x, self.fc1_weight, self.fc2_weight, self.fc1_bias, self.fc2_bias, add_max=self.add_max, act='silu',
            residual=residual, activation='relu',
        )  # fmt: skip


class LineGate(nn.Module):
    def __init__(self, filters: Tensor | None = None):
        super().__init__()
        self.conv_weight = nn.Parameter(torch.randn(1, 1, 3))
        self.register_buffer('filters', filters)

    def forward(self, x: Tensor) -> Tensor:
        return channel_gate(x, conv_weight=self.conv_weight, filters=self.filters)


@pytest.mark.parametrize('add_max', [False, True])
@over_all_onlookers
def test_does_the_same_whoever_looks_on(add_max, looks_on):
    torch.manual_seed(0)
    looks_on(Gate(add_max), torch.randn(3, 8, 6, 7), torch.randn(3, 8, 6, 7))


@pytest.mark.parametrize('filters', [None, torch.linspace(-1, 2, 8 * 6 * 7).view(8, 6, 7)], ids=['ECA', 'filters'])
@over_all_onlookers
def test_does_so_with_a_convolution(filters, looks_on):
    torch.manual_seed(0)
    looks_on(LineGate(filters).eval(), torch.randn(3, 8, 6, 7))


@pytest.mark.parametrize('graph', ['jit_script', 'compiled', 'exported', 'onnx_by_tracing', 'onnx_by_dynamo'])
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning', 'ignore::DeprecationWarning', 'ignore::FutureWarning')
def test_does_so_with_filters_for_another_size(graph):
    torch.manual_seed(0)
    ONLOOKERS[graph](LineGate(torch.randn(8, 4, 9)).eval(), torch.randn(3, 8, 6, 7))


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            dict(x=torch.zeros(2, 49, 6)),
            r'x: expected a map \[batch, channels, height, width\], got shape \(2, 49, 6\)',
        ),
        (dict(x=torch.zeros(2, 6, 5, 4, dtype=torch.int32)), 'x: expected a floating-point dtype, got torch.int32'),
        (dict(x=torch.zeros(2, 6, 0, 4)), r'x: expected a map of one .* at least, got shape \(2, 6, 0, 4\)'),
        (dict(x=torch.zeros(2, 7, 5, 4)), r'fc1_weight: .* the 7 channels of x, got shape \(3, 6\)'),
        (dict(fc1_weight=None), 'fc1_weight: expected .* got None'),
        (dict(fc1_weight=torch.zeros(0, 6)), r'fc1_weight: .* got shape \(0, 6\)'),
        (dict(fc2_weight=None), r'fc2_weight: expected \[channels, hidden\] = \[6, 3\], got None'),
        (dict(fc2_weight=torch.zeros(6, 4)), r'fc2_weight: .* = \[6, 3\], got shape \(6, 4\)'),
        (dict(fc1_bias=torch.zeros(6)), r'fc1_bias: expected \[hidden\] = \[3\], got shape \(6,\)'),
        (dict(fc2_bias=torch.zeros(3)), r'fc2_bias: expected \[channels\] = \[6\], got shape \(3,\)'),
        (dict(conv_weight=torch.zeros(1, 1, 3)), 'conv_weight: expected it or fc1_weight and .*, got both'),
        (
            dict(conv_weight=torch.zeros(1, 1, 4), fc1_weight=None, fc2_weight=None, fc1_bias=None, fc2_bias=None),
            r'conv_weight: expected \[1, 1, k\] with an odd k, got shape \(1, 1, 4\)',
        ),
        (dict(filters=torch.zeros(5, 3, 3)), r'filters: .* the 6 channels of x, got shape \(5, 3, 3\)'),
        (dict(residual=torch.zeros(2, 6, 5, 5)), r'residual: expected .* = \[2, 6, 5, 4\], got shape'),
        (dict(fc1_weight=torch.zeros(3, 6, device='meta')), 'fc1_weight: expected the device of x, cpu, got meta'),
        (dict(act='swish'), "act: expected one of 'relu', .*, got 'swish'"),
        (dict(gate='hard'), "gate: expected one of 'relu', .*, got 'hard'"),
        (dict(activation=''), "activation: expected one of 'relu', .*, got ''"),
    ],
)
def test_bad_input_is_named(changes, message):
    arguments = {'x': torch.zeros(2, 6, 5, 4), 'fc1_weight': torch.zeros(3, 6), 'fc2_weight': torch.zeros(6, 3)}
    with pytest.raises(ValueError, match=message):
        channel_gate(**(arguments | changes))
