"""Dropout in the attention blocks: what it does in training, and that evaluation knows nothing of it."""

import pytest
import torch
from all_blocks import BLOCKS
from timm.models.maxxvit import MaxxVitBlock, MaxxVitConvCfg, MaxxVitTransformerCfg
from torch import nn

from attnzoo.blocks import MultiAxisAttention, WindowAttention

DROPPING = {name: block for name, block in BLOCKS.items() if block.takes('attn_drop')}
over_dropping_blocks = pytest.mark.parametrize('block', DROPPING.values(), ids=DROPPING)
RATES = [dict(attn_drop=0.3), dict(proj_drop=0.3), dict(attn_drop=0.2, proj_drop=0.4)]


@pytest.mark.parametrize('rates', RATES, ids=str)
@over_dropping_blocks
def test_evaluation_knows_nothing_of_it(block, rates):
    dropping, plain = block.new(**rates), block.new()
    assert dropping.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(dropping.state_dict())
    assert torch.equal(dropping(block.map()), plain(block.map()))


@pytest.mark.parametrize('rates', RATES, ids=str)
@over_dropping_blocks
def test_training_draws_anew_and_a_seed_repeats_it(block, rates):
    module = block.new(**rates).train()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    x = block.map().requires_grad_()

    def draw(seed):
        torch.manual_seed(seed)
        out = module(x)
        return out, *torch.autograd.grad(out.square().sum(), [x, *module.parameters()])

    first, again, other = draw(1), draw(1), draw(2)
    for one, same in zip(first, again, strict=True):
        assert torch.equal(one, same)
    assert not torch.allclose(first[0], other[0], atol=1e-3)
    assert first[1].any() and all(gradient.isfinite().all() for gradient in first[1:])
    with torch.no_grad():  # as in Monte Carlo dropout
        torch.manual_seed(1)
        assert not torch.allclose(module(x), module.eval()(x), atol=1e-3)


@pytest.mark.parametrize('rates', RATES, ids=str)
@over_dropping_blocks
def test_the_mean_of_many_draws_is_what_evaluation_gives(block, rates):
    """Attention is linear in its weights, and the projection in what attention gives."""
    module = next(part for part in block.new(**rates).double().modules() if hasattr(part, 'attn_drop'))
    x = torch.randn(1, 4, 5, module.dim, dtype=torch.float64)
    with torch.no_grad():
        draws = module.train()(x.expand(600, -1, -1, -1))
        expected = module.eval()(x)[0]
    error, deviation = (draws.mean(0) - expected).abs(), draws.std(0)
    assert (deviation > 0).all()
    assert (error <= 6 * deviation / 600**0.5).all()


def test_only_what_is_in_training_drops():
    """The usual way to have Monte Carlo dropout: evaluation, but for the dropout layers."""
    torch.manual_seed(0)
    module = WindowAttention(16, 2, 4, attn_drop=0.5).eval()
    x = torch.randn(1, 8, 8, 16)
    expected = module(x)
    module.attn_drop.train()
    assert not torch.allclose(module(x), expected, atol=1e-3)


def test_multi_axis_drops_where_timm_does():
    """With rates of one, whatever is dropped is zero: nothing is left to chance."""
    torch.manual_seed(0)
    x = torch.randn(2, 6, 8, 16, dtype=torch.float64)
    for rates in (dict(attn_drop=1.0), dict(proj_drop=1.0)):
        theirs = MaxxVitBlock(
            16,
            16,
            conv_cfg=MaxxVitConvCfg(norm_eps=1e-3, act_layer='gelu_tanh', padding='same'),
            transformer_cfg=MaxxVitTransformerCfg(
                dim_head=8,
                head_first=False,
                rel_pos_type='bias_tf',
                window_size=(3, 4),
                norm_eps=1e-5,
                act_layer='gelu_tanh',
                **rates,
            ),
        ).double()
        ours = MultiAxisAttention(16, window=(3, 4), head_dim=8, dtype=torch.float64, **rates)
        ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours(x), theirs(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


@pytest.mark.parametrize('name', ['attn_drop', 'proj_drop'])
@pytest.mark.parametrize('rate', [-0.1, 1.5])
@over_dropping_blocks
def test_bad_rates_are_named(block, name, rate):
    with pytest.raises(ValueError, match=f'^{name}: expected a rate from 0 to 1, got {rate}$'):
        block.new(**{name: rate})
