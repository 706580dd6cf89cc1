"""Squeeze and excitation against golden data and timm's module, whose arguments and parameters it has."""

import pytest
import timm.layers
import torch
from official_block import assert_equals_the_official_block
from torch import nn

from attnzoo.blocks import SqueezeExcite


def test_equals_the_official_block():
    assert_equals_the_official_block(
        'se_timm',
        make=lambda _: SqueezeExcite(32, rd_channels=8),
        rename=str,
        call=lambda _: lambda module, x: module(x),
    )


VARIANTS = {
    'as it is': dict(),
    'ratio': dict(rd_ratio=0.4, rd_divisor=1),
    'hidden channels': dict(rd_channels=5, bias=False),
    'maximum': dict(add_maxpool=True),
    'SiLU, hard gate': dict(act_layer=nn.SiLU, gate_layer='hard_sigmoid'),
    'GELU': dict(act_layer='gelu', gate_layer=nn.Sigmoid),
    'an activation with weights': dict(act_layer=nn.PReLU),
    'an activation that the op does not know': dict(act_layer='elu', add_maxpool=True),
    'norm': dict(norm_layer=nn.BatchNorm2d, act_layer='hard_swish'),
    'another norm': dict(norm_layer=timm.layers.GroupNorm1, gate_layer='tanh'),
}


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('variant', VARIANTS)
def test_equals_timm_under_its_names(variant, training):
    torch.manual_seed(0)
    theirs = timm.layers.SEModule(20, **VARIANTS[variant]).double().train(training)
    ours = SqueezeExcite(20, **VARIANTS[variant]).double().train(training)
    ours.load_state_dict(theirs.state_dict())
    inputs = [torch.randn(3, 20, 7, 6, dtype=torch.float64).requires_grad_() for _ in range(2)]
    inputs[1].data.copy_(inputs[0].data)
    outs = [module(x) for module, x in zip((ours, theirs), inputs, strict=True)]
    torch.testing.assert_close(*outs, rtol=1e-12, atol=1e-12)
    found, expected = (
        torch.autograd.grad(out.square().sum(), [x, *module.parameters()])
        for out, x, module in zip(outs, inputs, (ours, theirs), strict=True)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)  # a sixth is float32 in PyTorch's gradients
    for one, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize('norm_layer', [None, nn.BatchNorm2d])
def test_residual_and_activation_in_one_call(norm_layer):
    torch.manual_seed(0)
    module = SqueezeExcite(16, norm_layer=norm_layer).eval()
    x, residual = torch.randn(2, 16, 5, 6), torch.randn(2, 16, 5, 6)
    torch.testing.assert_close(module(x, residual, 'relu'), torch.relu(module(x) + residual))
    torch.testing.assert_close(module(x, activation='gelu'), nn.functional.gelu(module(x)))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(rd_channels=0), 'rd_channels: expected at least 1, got 0'),
        (dict(rd_ratio=0.0), 'rd_ratio: expected a positive share of 16 channels, got 0.0'),
        (dict(rd_divisor=0), 'rd_divisor: expected at least 1, got 0'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SqueezeExcite(16, **arguments)
