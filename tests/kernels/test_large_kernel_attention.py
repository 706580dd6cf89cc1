"""Large kernel attention against its definition: sums over the positions of both kernels."""

import pytest
import torch
from depthwise_definition import correlate
from onlookers import assert_near, over_all_onlookers
from torch import Tensor, nn

from attnzoo.kernels import _cpu, large_kernel_attention
from attnzoo.kernels._testing import results
from attnzoo.kernels.depthwise_conv import reference as depthwise


def by_definition(
    x: Tensor,
    local_weight: Tensor,
    dilated_weight: Tensor,
    weight: Tensor,
    local_bias: Tensor | None = None,
    dilated_bias: Tensor | None = None,
    bias: Tensor | None = None,
    dilation: int = 3,
) -> Tensor:
    around = correlate(correlate(x, local_weight, local_bias, 1), dilated_weight, dilated_bias, dilation)
    out = torch.einsum('bhwc,dc->bhwd', around, weight)
    return x * (out if bias is None else out + bias)


def make_inputs(
    local: tuple[int, int] = (5, 5),
    dilated: tuple[int, int] = (7, 7),
    size: tuple[int, int] = (7, 5),
    channels: int = 3,
    biases: bool = True,
    batch: int = 2,
    **settings,
):
    generator = torch.Generator().manual_seed(0)

    def new(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = dict(
        x=new(batch, *size, channels),
        local_weight=new(channels, 1, *local) / 5,
        dilated_weight=new(channels, 1, *dilated) / 7,
        weight=new(channels, channels),
        **settings,
    )
    return inputs | {name: new(channels) for name in ('local_bias', 'dilated_bias', 'bias') if biases}


CASES = {
    'as in VAN': dict(),
    'larger than the dilated kernel': dict(size=(23, 20), channels=2),
    'without biases': dict(biases=False),
    'other kernels': dict(local=(3, 1), dilated=(5, 3), dilation=2),
    'one position, one channel': dict(size=(1, 1), channels=1),
}


@pytest.mark.parametrize('case', CASES)
def test_equals_the_definition(case):
    inputs = make_inputs(**CASES[case])
    d_out = torch.randn(inputs['x'].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, expected = (results(f, inputs, torch.float64, 'cpu', d_out) for f in (large_kernel_attention, by_definition))
    for name, true in expected.items():
        assert_near(found[name], true, 1e-12)


@pytest.mark.parametrize('images', [1, 2])
def test_by_parts_it_is_the_same(images, monkeypatch):
    inputs = make_inputs(batch=5)
    for module in (_cpu, depthwise):
        monkeypatch.setattr(module, 'PART_NUMBERS', images * inputs['x'][0].numel())
    found, expected = (
        results(f, inputs, torch.float64, 'cpu', inputs['x']) for f in (large_kernel_attention, by_definition)
    )
    for name, true in expected.items():
        assert_near(found[name], true, 1e-12)
    with torch.no_grad():
        assert_near(large_kernel_attention(**inputs), expected['output'], 1e-12)


@pytest.mark.parametrize('needed', ['x', 'local_weight', 'dilated_bias', 'bias'])
def test_only_the_gradients_that_are_needed(needed):
    inputs = make_inputs()
    expected = results(by_definition, inputs, torch.float64, 'cpu', inputs['x'])
    inputs[needed].requires_grad_()
    (found,) = torch.autograd.grad(large_kernel_attention(**inputs), inputs[needed], inputs['x'].detach())
    assert_near(found, expected[f'gradient of {needed}'], 1e-12)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_lower_precision(dtype):
    inputs = make_inputs(size=(9, 10), channels=8)
    d_out = torch.randn(inputs['x'].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = results(large_kernel_attention, inputs, torch.float64, 'cpu', d_out)
    for name, found in results(large_kernel_attention, inputs, dtype, 'cpu', d_out).items():
        assert found.dtype == dtype
        assert_near(found.double(), exact[name], 16 * torch.finfo(dtype).eps)


def test_any_strides_and_no_images():
    inputs = {name: one.float() for name, one in make_inputs().items()}
    x = inputs.pop('x')
    expected = large_kernel_attention(x, **inputs)
    for strided in (x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1), torch.cat([x, x], 3)[..., : x.shape[3]]):
        assert_near(large_kernel_attention(strided, **inputs), expected)
    inputs['weight'].requires_grad_()
    out = large_kernel_attention(x[:0], **inputs)
    (grad,) = torch.autograd.grad(out.sum(), inputs['weight'])
    assert out.shape == (0, 7, 5, 3) and not grad.any()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        for name, value in make_inputs((3, 3), (5, 5), (6, 7), 4, batch=3).items():
            if name != 'x':
                setattr(self, name, nn.Parameter(value.float()))

    def forward(self, x: Tensor) -> Tensor:
        return large_kernel_attention(
            x,
            self.local_weight,
            self.dilated_weight,
            self.weight,
            self.local_bias,
            self.dilated_bias,
            self.bias,
            2,
        )


@over_all_onlookers
def test_does_the_same_whoever_looks_on(looks_on):
    torch.manual_seed(0)
    looks_on(Attention(), torch.randn(3, 6, 7, 4))


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(x=torch.zeros(5, 6, 4)), r'x: expected a map \[batch, height, width, channels\], got shape \(5, 6, 4\)'),
        (dict(local_weight=torch.zeros(3, 1, 5, 5)), r'local_weight: .* the 4 channels of x, got shape \(3, 1, 5, 5\)'),
        (dict(dilated_weight=torch.zeros(4, 1, 7, 6)), r'dilated_weight: expected a kernel of odd height and width'),
        (dict(weight=torch.zeros(4, 4, 1, 1)), r'weight: expected \[channels, channels\] = \[4, 4\], got shape'),
        (dict(local_bias=torch.zeros(3)), r'local_bias: expected \[channels\] = \[4\], got shape \(3,\)'),
        (dict(dilated_bias=torch.zeros(4, device='meta')), 'dilated_bias: expected the device of x, cpu, got meta'),
        (dict(bias=torch.zeros(3)), r'bias: expected \[channels\] = \[4\], got shape \(3,\)'),
        (dict(dilation=0), 'dilation: expected at least 1, got 0'),
    ],
)
def test_bad_input_is_named(changes, message):
    arguments = dict(
        x=torch.zeros(1, 5, 6, 4),
        local_weight=torch.zeros(4, 1, 5, 5),
        dilated_weight=torch.zeros(4, 1, 7, 7),
        weight=torch.zeros(4, 4),
    )
    with pytest.raises(ValueError, match=message):
        large_kernel_attention(**(arguments | changes))
