"""The convolutional GLU against its definition, whole and by parts."""

import pytest
import torch
from onlookers import assert_near, over_all_onlookers
from torch import Tensor, nn
from torch.nn import functional as F

from attnzoo.kernels import conv_glu
from attnzoo.kernels._testing import results
from attnzoo.kernels.conv_glu import reference


@pytest.fixture(params=['whole', 'image by image', 'by two images'])
def parts(request, monkeypatch):
    """Small maps go the way of large ones; a hidden map of the tests has 1,680 bytes in float64."""
    if request.param != 'whole':
        monkeypatch.setattr(reference, 'LARGE_BYTES', 0)
        monkeypatch.setattr(reference, 'PART_BYTES', 1 if request.param == 'image by image' else 2 * 8 * 30 * 7)


def by_definition(x, fc1_weight, conv_weight, fc2_weight, fc1_bias=None, conv_bias=None, fc2_bias=None):
    """Channels first, as one network after the other."""
    hidden = len(conv_weight)
    both = F.conv2d(x.permute(0, 3, 1, 2), fc1_weight[:, :, None, None], fc1_bias)
    padding = [size // 2 for size in conv_weight.shape[2:]]
    gate = F.conv2d(both[:, :hidden], conv_weight, conv_bias, padding=padding, groups=hidden)
    out = gate / 2 * (1 + torch.erf(gate / 2**0.5)) * both[:, hidden:]
    return F.conv2d(out, fc2_weight[:, :, None, None], fc2_bias).permute(0, 2, 3, 1)


def make_inputs(batch: int = 3, kernel: tuple[int, int] = (3, 3), bias: bool = True) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def new(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5

    inputs = {
        'x': new(batch, 5, 6, 4),
        'fc1_weight': new(14, 4),
        'conv_weight': new(7, 1, *kernel),
        'fc2_weight': new(6, 7),
    }
    return inputs | {'fc1_bias': new(14), 'conv_bias': new(7), 'fc2_bias': new(6)} if bias else inputs


@pytest.mark.parametrize('inputs', [make_inputs(), make_inputs(kernel=(3, 5)), make_inputs(bias=False)])
def test_equals_the_definition(inputs, parts):
    d_out = torch.randn(3, 5, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, expected = (results(f, inputs, torch.float64, 'cpu', d_out) for f in (conv_glu, by_definition))
    for name, true in expected.items():
        assert_near(found[name], true, 1e-12)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_lower_precision(dtype, parts):
    inputs = make_inputs()
    d_out = torch.randn(3, 5, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = results(conv_glu, inputs, torch.float64, 'cpu', d_out)
    for name, found in results(conv_glu, inputs, dtype, 'cpu', d_out).items():
        assert found.dtype == dtype
        assert_near(found.double(), exact[name], 16 * torch.finfo(dtype).eps)


def test_only_what_needs_a_gradient_gets_one(parts):
    inputs = make_inputs()
    inputs['fc2_weight'].requires_grad_()
    (found,) = torch.autograd.grad(conv_glu(**inputs).square().sum(), inputs['fc2_weight'])
    (expected,) = torch.autograd.grad(by_definition(**inputs).square().sum(), inputs['fc2_weight'])
    assert_near(found, expected, 1e-12)


def test_dropout_scales_what_it_keeps():
    inputs = make_inputs() | {'fc2_weight': torch.eye(7, dtype=torch.float64), 'fc2_bias': None}
    torch.manual_seed(0)
    dropped, whole = conv_glu(**inputs, dropout=0.25), conv_glu(**inputs)
    kept = dropped != 0
    assert 0.6 < kept.double().mean() < 0.9
    torch.testing.assert_close(dropped[kept], whole[kept] / 0.75)


def test_no_images(parts):
    inputs = make_inputs(0)
    found = results(conv_glu, inputs, torch.float32, 'cpu', torch.ones(0, 5, 6, 6))
    assert found['output'].shape == (0, 5, 6, 6) and not found['gradient of fc1_weight'].any()


class Unit(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.conv, self.fc2 = nn.Linear(8, 24), nn.Conv2d(12, 12, 3, groups=12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return conv_glu(
            x, self.fc1.weight, self.conv.weight, self.fc2.weight, self.fc1.bias, self.conv.bias, self.fc2.bias
        )


@over_all_onlookers
def test_does_the_same_whoever_looks_on(looks_on, monkeypatch):
    monkeypatch.setattr(reference, 'LARGE_BYTES', 0)
    monkeypatch.setattr(reference, 'PART_BYTES', 1)
    torch.manual_seed(0)
    looks_on(Unit(), torch.randn(3, 6, 7, 8))


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(x=torch.zeros(5, 6, 4)), r'x: expected a map .* got shape \(5, 6, 4\)'),
        (dict(x=torch.zeros(1, 5, 6, 4, dtype=torch.long)), 'x: expected a floating-point dtype'),
        (dict(fc1_weight=torch.zeros(14, 3)), r'fc1_weight: .* the 4 channels of x, got shape \(14, 3\)'),
        (dict(fc1_weight=torch.zeros(13, 4)), r'fc1_weight: expected \[2 \* hidden, channels\]'),
        (dict(conv_weight=torch.zeros(6, 1, 3, 3)), 'conv_weight: .* the 7 hidden channels of fc1_weight'),
        (dict(conv_weight=torch.zeros(7, 1, 2, 3)), r'conv_weight: expected a kernel of odd height and width'),
        (dict(fc2_weight=torch.zeros(6, 14)), 'fc2_weight: .* the 7 hidden channels of fc1_weight'),
        (dict(fc1_bias=torch.zeros(7)), r'fc1_bias: expected \[2 \* hidden\] = \[14\], got shape \(7,\)'),
        (dict(conv_bias=torch.zeros(6)), r'conv_bias: expected \[hidden\] = \[7\]'),
        (dict(fc2_bias=torch.zeros(7)), r'fc2_bias: expected \[channels\] = \[6\]'),
        (dict(fc2_bias=torch.zeros(6, device='meta')), 'fc2_bias: expected the device of x, cpu, got meta'),
        (dict(dropout=1.5), 'dropout: expected a rate from 0 to 1, got 1.5'),
    ],
)
def test_bad_input_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        conv_glu(**make_inputs() | changes)
