"""Efficient local attention: values and gradients against the paper's formula written out, by hand and by PyTorch."""

from contextlib import nullcontext

import pytest
import torch
from gate_definitions import ACTIVATE, behind
from onlookers import SeesAll, assert_near, over_all_onlookers
from torch import Tensor, nn

from attnzoo.kernels import _gates, ela_gate
from attnzoo.kernels._testing import assert_as_exact_as, results


def gate(
    strips: Tensor, weight: Tensor, num_groups: int, norm_weight: Tensor | None, norm_bias: Tensor | None, eps: float
) -> Tensor:
    """Strips [B, C, L]: a convolution along them within groups of channels, norms of groups of channels, sigmoid."""
    batch, channels, length = strips.shape
    per_group, size = weight.shape[1:]
    border = strips.new_zeros(batch, channels, size // 2)
    padded = torch.cat([border, strips, border], 2)
    rows = []
    for c in range(channels):
        first = c // per_group * per_group
        window = padded[:, first : first + per_group]
        rows.append(sum((window[:, :, i : i + length] * weight[c, :, i, None]).sum(1) for i in range(size)))
    groups = torch.stack(rows, 1).view(batch, num_groups, -1)
    mean = groups.mean(2, keepdim=True)
    var = ((groups - mean) ** 2).mean(2, keepdim=True)
    out = ((groups - mean) / (var + eps).sqrt()).view(batch, channels, length)
    if norm_weight is not None:
        out = out * norm_weight[:, None]
    if norm_bias is not None:
        out = out + norm_bias[:, None]
    return ACTIVATE['sigmoid'](out)


def by_definition(
    x: Tensor,
    conv_h_weight: Tensor,
    conv_w_weight: Tensor,
    num_groups: int,
    norm_h_weight: Tensor | None = None,
    norm_w_weight: Tensor | None = None,
    norm_h_bias: Tensor | None = None,
    norm_w_bias: Tensor | None = None,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    gate_h = gate(x.mean(3), conv_h_weight, num_groups, norm_h_weight, norm_h_bias, eps)
    gate_w = gate(x.mean(2), conv_w_weight, num_groups, norm_w_weight, norm_w_bias, eps)
    return behind(x * gate_h[:, :, :, None] * gate_w[:, :, None, :], residual, activation)


def make_inputs(
    channels: int = 6,
    size: tuple[int, int] = (5, 4),
    num_groups: int = 2,
    kernels: tuple[int, int] = (3, 3),
    conv_groups: tuple[int, int] = (6, 6),
    norm: bool = True,
    residual: bool = False,
    channels_last: bool = False,
    batch: int = 3,
    **settings,
):
    generator = torch.Generator().manual_seed(0)

    def new(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = {'x': new(batch, channels, *size), 'num_groups': num_groups, **settings}
    if channels_last:
        inputs['x'] = inputs['x'].contiguous(memory_format=torch.channels_last)
    for axis, kernel, groups in zip('hw', kernels, conv_groups, strict=True):
        inputs[f'conv_{axis}_weight'] = new(channels, channels // groups, kernel)
        if norm:
            inputs |= {f'norm_{axis}_weight': new(channels), f'norm_{axis}_bias': new(channels)}
    if residual:
        inputs['residual'] = new(batch, channels, *size)
    return inputs


def gradient_like(x: Tensor) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


CASES = {
    'NCHW': dict(),
    'channels last': dict(channels_last=True),
    'groups of several channels': dict(conv_groups=(3, 2), kernels=(5, 7)),
    'groups of several channels, channels last': dict(conv_groups=(1, 3), channels_last=True),
    'without norm weights': dict(norm=False, num_groups=6, eps=0.1),
    'residual': dict(residual=True, num_groups=1),
    'residual, ReLU': dict(residual=True, activation='relu'),
    'residual, ReLU, channels last': dict(residual=True, activation='relu', channels_last=True),
    'residual, SiLU': dict(residual=True, activation='silu'),
    'one position': dict(size=(1, 1), num_groups=3),
    'one channel': dict(channels=1, conv_groups=(1, 1), num_groups=1),
}


@pytest.mark.parametrize('looks_on', [nullcontext, SeesAll], ids=['by hand', 'plain'])
@pytest.mark.parametrize('case', CASES)
def test_equals_the_definition(case, looks_on):
    inputs = make_inputs(**CASES[case])
    d_out = gradient_like(inputs['x'])
    expected = results(by_definition, inputs, torch.float64, 'cpu', d_out)
    with looks_on():
        found = results(ela_gate, inputs, torch.float64, 'cpu', d_out)
    largest = max(true.abs().max().item() for true in expected.values())
    for name, true in expected.items():
        assert_near(found[name], true, 1e-12, noise=1e-12 * largest)  # a norm's gradients may be zero but for rounding


def test_both_gates_may_share_their_weights():
    inputs = make_inputs()
    weight = inputs['conv_h_weight'].requires_grad_()
    norm = dict(norm_h_weight=inputs['norm_h_weight'], norm_w_weight=inputs['norm_h_weight'])
    found, expected = (
        torch.autograd.grad(function(inputs['x'], weight, weight, 2, **norm).square().sum(), weight)[0]
        for function in (ela_gate, by_definition)
    )
    assert_near(found, expected, 1e-12)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize('channels_last', [False, True])
def test_lower_precision(channels_last, dtype):
    """By hand it is about as exact as in PyTorch's own operations."""
    inputs = make_inputs(size=(17, 18), residual=True, activation='relu', channels_last=channels_last)
    inputs = {name: x.to(dtype).double() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    d_out = gradient_like(inputs['x'])
    exact = results(ela_gate, inputs, torch.float64, 'cpu', d_out)
    with SeesAll():
        plain = results(ela_gate, inputs, dtype, 'cpu', d_out)
    assert_as_exact_as(results(ela_gate, inputs, dtype, 'cpu', d_out), plain, exact, dtype)


@pytest.mark.parametrize('channels_last', [False, True])
def test_parts_any_strides_and_no_images(channels_last, monkeypatch):
    inputs = make_inputs(residual=True, activation='relu', batch=5, channels_last=channels_last)
    d_out = gradient_like(inputs['x'])
    expected = results(ela_gate, inputs, torch.float64, 'cpu', d_out)
    monkeypatch.setattr(_gates, 'PART_BYTES', 2 * inputs['x'][0].numel() * 8)  # two images, two and one
    for name, found in results(ela_gate, inputs, torch.float64, 'cpu', d_out).items():
        assert_near(found, expected[name], 1e-11)
    x = inputs['x']
    for other in (x.transpose(2, 3).contiguous().transpose(2, 3), torch.cat([x, x], 3)[..., :4]):
        assert_near(ela_gate(**dict(inputs, x=other)), expected['output'], 1e-12)
    form = torch.channels_last if channels_last else torch.contiguous_format
    assert ela_gate(**inputs).is_contiguous(memory_format=form)
    empty = {name: value[:0] if name in ('x', 'residual') else value for name, value in inputs.items()}
    leaf = empty['x'].requires_grad_()
    out = ela_gate(**empty)
    out.sum().backward()
    assert out.shape == leaf.grad.shape == (0, 6, 5, 4)


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_h, self.conv_w = nn.Conv1d(8, 8, 3, groups=8, bias=False), nn.Conv1d(8, 8, 5, groups=2, bias=False)
        self.norm = nn.GroupNorm(4, 8)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return ela_gate(
            x, self.conv_h.weight, self.conv_w.weight, 4, self.norm.weight, self.norm.weight, self.norm.bias,
            self.norm.bias, residual=residual, activation='relu',
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
        (dict(x=torch.zeros(2, 8, 5, 4)), r'conv_h_weight: .* the 8 channels of x, got shape \(6, 1, 3\)'),
        (dict(conv_w_weight=torch.zeros(6, 4, 3)), r'conv_w_weight: .* got shape \(6, 4, 3\)'),
        (dict(conv_w_weight=torch.zeros(6, 2, 4)), r'conv_w_weight: expected an odd kernel, got shape \(6, 2, 4\)'),
        (dict(num_groups=4), 'num_groups: expected a divisor of the 6 channels of x, got 4'),
        (dict(norm_w_bias=torch.zeros(3)), r'norm_w_bias: expected \[channels\] = \[6\], got shape \(3,\)'),
        (dict(norm_h_weight=torch.zeros(6, device='meta')), 'norm_h_weight: expected the device of x, cpu, got meta'),
        (dict(residual=torch.zeros(6, 5, 4)), r'residual: expected .* = \[2, 6, 5, 4\], got shape'),
        (dict(activation='none'), "activation: expected one of 'relu', .*, got 'none'"),
    ],
)
def test_bad_input_is_named(changes, message):
    kernels = {f'conv_{axis}_weight': torch.zeros(6, 1, 3) for axis in 'hw'}
    with pytest.raises(ValueError, match=message):
        ela_gate(**({'x': torch.zeros(2, 6, 5, 4), 'num_groups': 2, **kernels} | changes))
