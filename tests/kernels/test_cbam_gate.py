"""CBAM: values and gradients against a definition written out, by hand and by PyTorch."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from gate_definitions import ACTIVATE, behind, maximum, spatial_gate
from onlookers import SeesAll, assert_near, over_all_onlookers
from torch import Tensor, nn
from torch.nn import functional as F

from attnzoo.kernels import _gates, cbam_gate
from attnzoo.kernels._testing import assert_as_exact_as, results


def by_definition(
    x: Tensor,
    fc1_weight: Tensor,
    fc2_weight: Tensor,
    fc1_bias: Tensor | None = None,
    fc2_bias: Tensor | None = None,
    conv_weight: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = False,
    eps: float = 1e-5,
    pools: list[str] | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    values = x.flatten(2)
    pooled = {
        'avg': values.mean(2),
        'max': maximum(values, 2),
        'lp': (values**2).sum(2).sqrt(),
        'lse': values.exp().sum(2).log(),
    }
    scores = 0
    for pool in pools or ['avg', 'max']:
        hidden = (pooled[pool].unsqueeze(1) * fc1_weight).sum(2) + (0 if fc1_bias is None else fc1_bias)
        scores = scores + (hidden.clamp(min=0).unsqueeze(1) * fc2_weight).sum(2)
        scores = scores + (0 if fc2_bias is None else fc2_bias)
    out = x * ACTIVATE['sigmoid'](scores)[:, :, None, None]
    if conv_weight is not None:
        norm = norm_weight, norm_bias, running_mean, running_var, training, eps
        out = out * spatial_gate(out, 1, conv_weight, *norm).unsqueeze(1)
    return behind(out, residual, activation)


def make_inputs(
    channels: int = 6,
    size: tuple[int, int] = (5, 4),
    hidden: int = 3,
    bias: bool = True,
    kernel: tuple[int, int] | None = (3, 3),
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
    inputs |= {'fc1_weight': new(hidden, channels), 'fc2_weight': new(channels, hidden)}
    if bias:
        inputs |= {'fc1_bias': new(hidden), 'fc2_bias': new(channels)}
    if kernel is not None:
        inputs['conv_weight'] = new(1, 2, *kernel)
        if norm:
            inputs |= {'norm_weight': new(1), 'norm_bias': new(1)}
    if residual:
        inputs['residual'] = new(batch, channels, *size)
    fixed = {'running_mean': new(1), 'running_var': new(1).abs()} if kernel is not None and statistics else {}
    return inputs, fixed


CASES = {
    'NCHW': dict(),
    'channels last': dict(channels_last=True),
    'statistics of the batch': dict(training=True),
    'statistics of the batch, channels last': dict(training=True, channels_last=True, eps=0.1),
    'no running statistics': dict(statistics=False),
    'without norm weights': dict(norm=False),
    'ties': dict(ties=True),
    'ties, channels last': dict(ties=True, channels_last=True, residual=True, activation='relu'),
    'residual': dict(residual=True),
    'residual, ReLU': dict(residual=True, activation='relu'),
    'residual, SiLU': dict(residual=True, activation='silu'),
    'no gate of positions': dict(kernel=None),
    'no gate of positions, channels last': dict(kernel=None, channels_last=True, residual=True, activation='relu'),
    'means': dict(pools=['avg'], bias=False),
    'maxima': dict(pools=['max'], channels_last=True),
    'all pools': dict(pools=['avg', 'max', 'lp', 'lse']),
    'a rectangular kernel, larger than the map': dict(kernel=(3, 7), size=(2, 5)),
    'a map that is higher than wide': dict(kernel=(5, 3), size=(7, 3)),
    'one position': dict(size=(1, 1)),
    'one channel': dict(channels=1, hidden=1),
}


@pytest.mark.parametrize('looks_on', [nullcontext, SeesAll], ids=['by hand', 'plain'])
@pytest.mark.parametrize('case', CASES)
def test_equals_the_definition(case, looks_on):
    inputs, fixed = make_inputs(**CASES[case])
    d_out = torch.randn(inputs['x'].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = results(partial(by_definition, **fixed), inputs, torch.float64, 'cpu', d_out)
    with looks_on():
        found = results(partial(cbam_gate, **fixed), inputs, torch.float64, 'cpu', d_out)
    for name, true in expected.items():
        assert_near(found[name], true, 1e-12)


@pytest.mark.parametrize('looks_on', [nullcontext, SeesAll], ids=['by hand', 'plain'])
def test_training_updates_the_running_statistics_once(looks_on):
    """As `nn.BatchNorm2d` does, and gradients are those of the batch that was seen, whatever came behind it."""
    inputs, fixed = make_inputs(training=True, momentum=0.3)
    x = inputs.pop('x').requires_grad_()
    weight = inputs['conv_weight'].clone().requires_grad_()
    inputs['conv_weight'] = weight
    batch_norm = nn.BatchNorm2d(1, momentum=0.3).double()
    batch_norm.running_mean, batch_norm.running_var = (y.clone() for y in fixed.values())
    gated = by_definition(x, **{name: inputs[name] for name in ('fc1_weight', 'fc2_weight', 'fc1_bias', 'fc2_bias')})
    batch_norm(F.conv2d(torch.stack([gated.amax(1), gated.mean(1)], 1), weight, padding=1))
    with looks_on():
        out = cbam_gate(x, **inputs, **fixed)
        expected = torch.autograd.grad(out.square().sum(), (x, weight), create_graph=True)
        torch.autograd.grad(expected[0].square().sum(), weight)  # computes it again
        assert_near(fixed['running_mean'], batch_norm.running_mean, 1e-12)
        assert_near(fixed['running_var'], batch_norm.running_var, 1e-12)
        out = cbam_gate(x, **inputs, **fixed)
        cbam_gate(x[:2], **inputs, **fixed)
        for one, other in zip(torch.autograd.grad(out.square().sum(), (x, weight)), expected, strict=True):
            assert_near(one, other.detach(), 1e-12)


def test_a_null_map_has_gradients():
    """The root of a sum of squares has no derivative at zero."""
    inputs, fixed = make_inputs(pools=['avg', 'lp'])
    x = torch.zeros_like(inputs.pop('x')).requires_grad_()
    (grad,) = torch.autograd.grad(cbam_gate(x, **inputs, **fixed).sum(), x)
    assert grad.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize('channels_last', [False, True])
def test_lower_precision(channels_last, dtype):
    """By hand it is about as exact as in PyTorch's own operations."""
    settings = dict(size=(9, 10), channels=8, residual=True, activation='relu', channels_last=channels_last)
    inputs, fixed = make_inputs(**settings)
    # One channel is far above the others, and in each one position: rounding chooses no other maxima.
    inputs['x'][:, 3] += 6.0
    inputs['x'].flatten(2)[:, :, 17] += 6.0
    inputs = {name: x.to(dtype).double() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    d_out = torch.randn(inputs['x'].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = results(partial(cbam_gate, **fixed), inputs, torch.float64, 'cpu', d_out)
    low = partial(cbam_gate, **{name: x.to(dtype) for name, x in fixed.items()})
    with SeesAll():
        plain = results(low, inputs, dtype, 'cpu', d_out)
    assert_as_exact_as(results(low, inputs, dtype, 'cpu', d_out), plain, exact, dtype)


@pytest.mark.parametrize('channels_last', [False, True])
def test_parts_any_strides_and_no_images(channels_last, monkeypatch):
    inputs, fixed = make_inputs(residual=True, activation='relu', batch=5, channels_last=channels_last)
    gate = partial(cbam_gate, **fixed)
    d_out = torch.randn(inputs['x'].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
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
    def __init__(self, training: bool = False):
        super().__init__()
        self.fc1 = nn.Linear(8, 3)
        self.fc2 = nn.Linear(3, 8)
        self.conv = nn.Conv2d(2, 1, 3, bias=False)
        self.norm = nn.BatchNorm2d(1)
        self.by_batch = training

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return cbam_gate(
            x, self.fc1.weight, self.fc2.weight, self.fc1.bias, self.fc2.bias, self.conv.weight, self.norm.weight,
            self.norm.bias, self.norm.running_mean, self.norm.running_var, self.by_batch, residual=residual,
            activation='relu',
        )  # fmt: skip


@over_all_onlookers
def test_does_the_same_whoever_looks_on(looks_on):
    torch.manual_seed(0)
    looks_on(Gate().eval(), torch.randn(3, 8, 6, 7), torch.randn(3, 8, 6, 7))


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(x=torch.zeros(2, 49, 6)), r'x: expected a map \[batch, channels, height, width\], got'),
        (dict(x=torch.zeros(2, 6, 5, 0)), r'x: expected a map of one .* at least, got shape \(2, 6, 5, 0\)'),
        (dict(x=torch.zeros(2, 7, 5, 4)), r'fc1_weight: .* the 7 channels of x, got shape \(3, 6\)'),
        (dict(fc2_bias=torch.zeros(3)), r'fc2_bias: expected \[channels\] = \[6\], got shape \(3,\)'),
        (dict(conv_weight=torch.zeros(1, 1, 3, 3)), r'conv_weight: expected \[1, 2, height, width\], got shape'),
        (dict(conv_weight=torch.zeros(1, 2, 3, 4)), r'conv_weight: expected a kernel of odd .*, got \(3, 4\)'),
        (dict(norm_weight=torch.zeros(6)), r'norm_weight: expected \[1\] = \[1\], got shape \(6,\)'),
        (dict(running_mean=torch.zeros(1)), 'running_var: expected it and running_mean, or neither, got one'),
        (dict(norm_bias=torch.zeros(1, device='meta')), 'norm_bias: expected the device of x, cpu, got meta'),
        (dict(pools=['avg', 'mean']), r"pools: expected some of 'avg', .*, got \['avg', 'mean'\]"),
        (dict(pools=[]), r'pools: expected some of .*, got \[\]'),
        (dict(residual=torch.zeros(6, 5, 4)), r'residual: expected .* = \[2, 6, 5, 4\], got shape'),
        (dict(activation='none'), "activation: expected one of 'relu', .*, got 'none'"),
    ],
)
def test_bad_input_is_named(changes, message):
    arguments = {
        'x': torch.zeros(2, 6, 5, 4),
        'fc1_weight': torch.zeros(3, 6),
        'fc2_weight': torch.zeros(6, 3),
        'conv_weight': torch.zeros(1, 2, 3, 3),
    }
    with pytest.raises(ValueError, match=message):
        cbam_gate(**(arguments | changes))
