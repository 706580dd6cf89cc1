"""Attention of all to all against the definition written out, with derivatives of every kind."""

import pytest
import torch

from attnzoo.kernels import full_attention


def make(mask=None, keys=6):
    torch.manual_seed(0)
    q, k = (torch.randn(2, 3, n, 4, dtype=torch.float64, requires_grad=True) for n in (5, keys))
    v = torch.randn(2, 3, keys, 7, dtype=torch.float64, requires_grad=True)
    if mask == 'constant':
        return q, k, v, torch.zeros(2, 1, 5, 6, dtype=torch.float64).masked_fill(torch.rand(2, 1, 5, 6) < 0.3, -1e9)
    if mask == 'learned':
        return q, k, v, torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)
    return q, k, v, None


@pytest.mark.parametrize('mask', [None, 'constant', 'learned'])
@pytest.mark.parametrize('scale', [None, 0.7])
def test_equals_the_definition(mask, scale):
    q, k, v, mask = make(mask)
    scores = torch.einsum('bntd,bnsd->bnts', q, k) * (0.5 if scale is None else scale)
    expected = (scores if mask is None else scores + mask).softmax(-1) @ v
    torch.testing.assert_close(full_attention(q, k, v, mask, scale), expected)


@pytest.mark.parametrize('mask', [None, 'constant', 'learned'])
def test_has_derivatives_of_every_kind(mask):
    q, k, v, mask = make(mask)
    check = dict(fast_mode=True, raise_exception=True)
    assert torch.autograd.gradcheck(
        full_attention, (q, k, v, mask), check_forward_ad=True, check_batched_grad=True, **check
    )
    assert torch.autograd.gradgradcheck(full_attention, (q, k, v, mask), check_fwd_over_rev=True, **check)
    # One of them, and one made from another.
    assert torch.autograd.gradgradcheck(lambda v: full_attention(q.detach(), k.detach(), v), (v,), **check)
    assert torch.autograd.gradgradcheck(lambda k, v: full_attention(k.sin(), k, v), (k, v), **check)


def test_first_derivatives_are_those_of_the_fused_form():
    """No detour where nobody looks on: the values are PyTorch's own to the last bit, where SDPA is what is faster."""
    q, k, v, _ = make(keys=70)
    grad = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    found = torch.autograd.grad(full_attention(q, k, v), (q, k, v), grad)
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    for one, other in zip(found, torch.autograd.grad(fused, (q, k, v), grad), strict=True):
        assert torch.equal(one, other)


def test_dropout_drops_weights_and_scales_the_others():
    q, k, v, _ = make()
    torch.manual_seed(0)
    draws = torch.cat([full_attention(q, k, torch.ones_like(v), dropout=0.5) for _ in range(400)])
    assert draws.min() < 1 < draws.max() < 2 + 1e-9
    torch.testing.assert_close(draws.mean().item(), 1.0, rtol=0.02, atol=0)
    torch.manual_seed(3)
    first = full_attention(q, k, v, dropout=0.5)
    torch.manual_seed(3)
    assert torch.equal(full_attention(q, k, v, dropout=0.5), first)
