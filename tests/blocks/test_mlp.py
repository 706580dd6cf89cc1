"""The MLP equals timm's, by hand and layer by layer."""

import copy

import pytest
import timm.layers
import torch
from onlookers import assert_near, gradients, over_all_onlookers
from torch.testing._internal.two_tensor import TwoTensor

from attnzoo.blocks import Mlp
from attnzoo.kernels import _mlp
from attnzoo.kernels._measure import peak_bytes


@pytest.fixture(params=['kept', 'computed again'])
def parts(request, monkeypatch):
    """A part of a hidden layer is three rows of 16 channels, which the backward pass gets or computes again."""
    monkeypatch.setattr(_mlp, 'PART_BYTES', 3 * 16 * 4)
    monkeypatch.setattr(_mlp, 'LARGE_BYTES', 1 << 40 if request.param == 'kept' else 1)


@pytest.mark.parametrize('shape', [(2, 5, 7, 4), (3, 11, 4), (1, 4), (4,)])
@pytest.mark.parametrize(
    'by_hand, arguments',
    [
        (True, {}),
        (True, dict(act_layer=timm.layers.GELUTanh, out_features=6, bias=(True, False), drop=0.0)),
        (True, dict(act_layer=lambda: torch.nn.GELU('tanh'), bias=(False, True))),
        (False, dict(norm_layer=torch.nn.LayerNorm)),
        (False, dict(act_layer=torch.nn.SiLU)),
    ],
)
def test_equals_timms(by_hand, arguments, shape, parts):
    torch.manual_seed(0)
    theirs = timm.layers.Mlp(4, 16, **arguments)
    module = Mlp(4, 16, **arguments)
    module.load_state_dict(theirs.state_dict())
    x = torch.randn(shape)
    assert module.runs_by_hand(x) == by_hand
    found = gradients(module, module, (x,))
    for one, other in zip(found, gradients(theirs, theirs, (x,)), strict=True):
        assert_near(one, other, 1e-5)
    with torch.no_grad():
        assert_near(module(x), theirs(x), 1e-6)


def test_a_layer_that_was_replaced_runs():
    """As adapters and quantisation do it."""

    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    module, x = Mlp(4, 16), torch.randn(2, 3, 4)
    expected = 2 * (module(x) - module.fc2.bias) + 2 * module.fc2.bias
    doubled = Doubled(16, 4)
    doubled.load_state_dict(module.fc2.state_dict())
    module.fc2 = doubled
    assert_near(module(x), expected, 1e-6)


def test_weights_that_see_operations_see_the_layers():
    """As sharded and quantised ones do."""
    module = Mlp(4, 16)
    x, expected = torch.randn(2, 3, 4), module(torch.ones(2, 3, 4))
    assert module.runs_by_hand(x)
    module.fc1.weight = torch.nn.Parameter(TwoTensor(module.fc1.weight.detach(), module.fc1.weight.detach()))
    assert not module.runs_by_hand(x)
    assert_near(module(torch.ones(2, 3, 4)).a, expected, 1e-6)


def test_under_autocast_it_is_as_near_as_timms():
    torch.manual_seed(0)
    exact = timm.layers.Mlp(64, 256).double()
    x = torch.randn(2, 9, 64)
    expected = gradients(exact, exact, (x.double(),))
    errors = []
    for kind in (Mlp, timm.layers.Mlp):
        module = kind(64, 256)
        module.load_state_dict(exact.state_dict())
        with torch.autocast('cpu', torch.bfloat16):
            found = gradients(module, module, (x,))
        errors.append([float((one - other).abs().max()) for one, other in zip(found, expected, strict=True)])
        assert all(one.dtype == torch.float32 for one in found[1:])
    assert all(ours <= 1.5 * theirs + 1e-6 for ours, theirs in zip(*errors, strict=True)), errors


@over_all_onlookers
def test_does_the_same_whoever_looks_on(looks_on, parts):
    torch.manual_seed(0)
    looks_on(Mlp(4, 16).eval(), torch.randn(3, 5, 6, 4))


def test_whoever_listens_to_a_layer_hears_it_once(parts):
    module, heard = Mlp(4, 16), []
    x = torch.randn(2, 5, 7, 4)
    expected = module(x)
    handle = module.act.register_forward_hook(lambda module, inputs, out: heard.append(out.shape))
    assert_near(module(x), expected, 1e-6)
    assert heard == [(2, 5, 7, 16)]
    handle.remove()
    assert_near(module(x), expected, 1e-6)
    assert len(heard) == 1


def test_dropout_drops(parts):
    torch.manual_seed(0)
    module = Mlp(4, 16, drop=(0.5, 0.0)).train()
    x = torch.randn(1, 4).expand(400, 4)
    assert len(module(x).unique(dim=0)) > 390
    assert len(module.eval()(x).detach().mul(1e4).round().unique(dim=0)) == 1


@pytest.mark.parametrize('training', [False, True])
def test_takes_less_memory(training):
    """At the size of a first stage: 25,088 tokens, hidden layers of 38 MB."""
    torch.manual_seed(0)
    module, x = Mlp(96, 384), torch.randn(8, 56, 56, 96)
    whole = copy.deepcopy(module)
    whole.by_hand = whole.layers

    def step(module):
        with torch.set_grad_enabled(training):
            out = module(x)
        if training:
            out.sum().backward()

    peaks = [peak_bytes(lambda one=one: step(one), torch.device('cpu')) for one in (module, whole)]
    assert peaks[0] < 0.7 * peaks[1]
