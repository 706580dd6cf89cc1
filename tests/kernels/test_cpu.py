"""What references choose on a CPU: attention of all queries to all keys in each of its formulations."""

import pytest
import torch
from onlookers import assert_near, over_all_onlookers
from torch import Tensor, nn

from attnzoo.kernels import _sdpa, full_attention
from attnzoo.kernels._cpu import prefers_products
from attnzoo.kernels._testing import results


def by_definition(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Query by query."""
    rows = []
    for query in q.unbind(2):
        scores = (query.unsqueeze(2) * k).sum(-1) * (q.shape[3] ** -0.5 if scale is None else scale)
        if mask is not None:
            scores = scores + mask.expand(*q.shape[:3], k.shape[2])[:, :, len(rows)]
        rows.append((scores.softmax(-1).unsqueeze(3) * v).sum(2))
    return torch.stack(rows, 2)


def make_inputs(keys: int, mask: bool, queries: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {'q': (2, 3, queries, 4), 'k': (2, 3, keys, 4), 'v': (2, 3, keys, 5)}
    if mask:
        shapes['mask'] = (1, 3, queries, keys)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


@pytest.fixture
def written_out(monkeypatch):
    """How often attention was computed by products."""
    calls = []
    products = _sdpa._written_out
    monkeypatch.setattr(_sdpa, '_written_out', lambda *x: calls.append(1) or products(*x))
    return calls


@pytest.mark.parametrize('mask', [False, True])
@pytest.mark.parametrize('keys', [5, 70])
@pytest.mark.parametrize('scale', [None, 0.3])
def test_equals_the_definition(keys, mask, scale, written_out):
    inputs = make_inputs(keys, mask) | {'scale': scale}
    d_out = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    found, expected = (results(f, inputs, torch.float64, 'cpu', d_out) for f in (full_attention, by_definition))
    for name, true in expected.items():
        assert_near(found[name], true, 1e-12)
    assert bool(written_out) == (keys == 5 or mask)  # the mask is learned there

    written_out.clear()
    inputs = {name: x.requires_grad_() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    with torch.no_grad():
        assert_near(full_attention(**inputs), expected['output'], 1e-12)
        if mask:
            assert_near(full_attention(**inputs | {'mask': inputs['mask'][0]}), expected['output'], 1e-12)
    assert bool(written_out) == (keys == 5)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('keys', [5, 70, 600])
def test_half_precision(keys, dtype, written_out):
    inputs = make_inputs(keys, mask=False)
    d_out = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = results(full_attention, inputs, torch.float64, 'cpu', d_out)
    written_out.clear()
    for name, found in results(full_attention, inputs, dtype, 'cpu', d_out).items():
        assert found.dtype == dtype
        assert_near(found.double(), exact[name], 16 * torch.finfo(dtype).eps)
    assert bool(written_out) == (keys < 600)

    written_out.clear()
    with torch.no_grad():
        found = full_attention(**{name: x.to(dtype) for name, x in inputs.items()})
    assert_near(found.double(), exact['output'], 4 * torch.finfo(dtype).eps)
    assert not written_out


def test_what_is_preferred_for_which_number_of_keys():
    """SDPA where its memory traffic matters, products where it is slow at a gradient."""
    assert prefers_products(49, half=False, training=False)
    assert not prefers_products(196, half=False, training=False)
    assert not prefers_products(196, half=False, training=True)
    assert prefers_products(196, half=False, training=True, learned_mask=True)
    assert prefers_products(196, half=True, training=True)
    assert not prefers_products(196, half=True, training=False)
    assert not prefers_products(784, half=True, training=True)


class Full(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return full_attention(q, k, v)


@over_all_onlookers
def test_many_keys_do_the_same_whoever_looks_on(looks_on):
    looks_on(Full(), *(x.float() for x in make_inputs(70, mask=False).values()))


def test_no_images():
    q = torch.zeros(0, 3, 6, 4, requires_grad=True)
    out = full_attention(q, q, q)
    out.sum().backward()
    assert out.shape == q.grad.shape == (0, 3, 6, 4)
