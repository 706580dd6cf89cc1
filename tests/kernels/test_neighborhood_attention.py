"""Neighborhood attention and its unfused pair against a definition with a mask over all pairs of positions."""

import pytest
import torch
from onlookers import SeesAll, assert_near, over_all_onlookers
from torch import Tensor, nn

from attnzoo.kernels import _tiles, neighborhood_attention, neighborhood_av, neighborhood_qk
from attnzoo.kernels._measure import peak_bytes
from attnzoo.kernels._testing import assert_as_exact_as, results
from attnzoo.kernels.neighborhood_attention.neighbours import cut_axis, neighbours_of_tiles


def distances(size: int, kernel: int, dilation: int, causal: bool, valid: int) -> Tensor:
    """For each query and key of an axis their distance in dilations, plus kernel - 1, or -1 if it is no key of it."""
    found = torch.full((size, size), -1)
    for query in range(size):
        same_residue = list(range(query % dilation, size, dilation))
        place = same_residue.index(query)
        if causal:
            keys = range(max(place - kernel + 1, 0), place + 1)
        else:  # of all windows that lie on the map, the one whose middle is nearest
            starts = range(len(same_residue) - kernel + 1)
            start = min(starts, key=lambda start: abs(start + kernel // 2 - place))
            keys = range(start, start + kernel)
        for key in keys:
            if same_residue[key] < valid or query >= valid:
                found[query, same_residue[key]] = key - place + kernel - 1
    return found


def by_definition(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    kernel: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    bias: Tensor | None = None,
    is_causal: tuple[bool, bool] = (False, False),
    scale: float | None = None,
    valid: tuple[int, int] | None = None,
) -> Tensor:
    _, height, width, channels = q.shape
    q, k, v = (x.flatten(1, 2).unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    size, valid = (height, width), valid or (height, width)
    rows, columns = (distances(*along) for along in zip(size, kernel, dilation, is_causal, valid, strict=True))
    row, column = torch.broadcast_tensors(rows[:, None, :, None], columns[None, :, None, :])
    near = (row >= 0) & (column >= 0)
    scores = (q @ k.mT) * ((channels // num_heads) ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias[:, row.clamp(min=0), column.clamp(min=0)].flatten(3).flatten(1, 2)
    weights = scores.masked_fill(~near.flatten(2).flatten(0, 1), float('-inf')).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(-1, height, width, channels)


def unfused(q: Tensor, k: Tensor, v: Tensor, num_heads: int, kernel: tuple[int, int], **settings) -> Tensor:
    weights = neighborhood_qk(q, k, num_heads, kernel, **settings).softmax(-1)
    return neighborhood_av(
        weights.to(v.dtype), v, kernel, **{name: x for name, x in settings.items() if name not in ('bias', 'scale')}
    )


def make_inputs(size: tuple[int, int], kernel: tuple[int, int], bias: bool = True, **settings):
    generator = torch.Generator().manual_seed(0)

    def new(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = {name: new(2, *size, 6) for name in 'qkv'} | {'num_heads': 2, 'kernel': kernel} | settings
    return inputs | {'bias': new(2, 2 * kernel[0] - 1, 2 * kernel[1] - 1)} if bias else inputs


CASES = {
    'the whole map': dict(size=(3, 5), kernel=(3, 5)),
    'small map': dict(size=(9, 7), kernel=(3, 3)),
    'tiles': dict(size=(26, 24), kernel=(5, 5)),
    'tiles along one axis, with few queries in the last': dict(size=(5, 41), kernel=(3, 7)),
    'without bias, of another scale': dict(size=(6, 19), kernel=(3, 3), bias=False, scale=0.3),
    'one key along an axis': dict(size=(4, 6), kernel=(1, 5)),
    '13 x 13': dict(size=(13, 20), kernel=(13, 13)),
    'dilated': dict(size=(12, 14), kernel=(3, 5), dilation=(4, 2)),
    'dilated, sub-grids of different sizes': dict(size=(11, 49), kernel=(3, 5), dilation=(3, 2)),
    'causal rows': dict(size=(9, 5), kernel=(5, 3), is_causal=(True, False)),
    'causal, dilated, tiles': dict(size=(4, 43), kernel=(3, 5), dilation=(1, 2), is_causal=(False, True)),
    'padded': dict(size=(7, 21), kernel=(7, 5), valid=(4, 20)),
    'padded, dilated, whole sub-grids': dict(size=(9, 10), kernel=(3, 5), dilation=(3, 2), valid=(2, 9)),
}


@pytest.mark.parametrize('form', ['fused', 'unfused', 'fused, plain', 'unfused, plain', 'fused, by small parts'])
@pytest.mark.parametrize('case', CASES)
def test_equals_the_definition(case, form, monkeypatch):
    inputs = make_inputs(**CASES[case])
    d_out = torch.randn(inputs['q'].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    function = unfused if form.startswith('unfused') else neighborhood_attention
    if 'small parts' in form:
        monkeypatch.setattr(_tiles, 'PART_BYTES', 1)
    expected = results(by_definition, inputs, torch.float64, 'cpu', d_out)
    if 'plain' in form:
        with SeesAll():
            found = results(function, inputs, torch.float64, 'cpu', d_out)
    else:
        found = results(function, inputs, torch.float64, 'cpu', d_out)
    for name, true in expected.items():
        assert_near(found[name], true, 1e-12)


@pytest.mark.parametrize('is_causal', [False, True])
@pytest.mark.parametrize('dilation', [1, 2, 3])
@pytest.mark.parametrize('kernel', [1, 3, 7, 13])
def test_windows_hold_the_keys_of_all_queries_of_their_tile(kernel, dilation, is_causal):
    for size in range(kernel * dilation, kernel * dilation + 40):
        axis = cut_axis(size, kernel, dilation, is_causal)
        offset, has, own = neighbours_of_tiles(axis, kernel, is_causal, size, slice(0, axis.count))
        expected = distances(size, kernel, dilation, is_causal, size)
        offset, has, own = (x.flatten(1, 2) for x in (offset.masked_fill(~has, -1), has, own))  # by place
        assert own.min() >= 0 and own.max() < axis.window
        for query in range(size):
            residue, place = query % dilation, query // dilation
            found = offset[residue, place]
            assert torch.equal(found[found >= 0], expected[query][expected[query] >= 0])
            assert has[residue, place, own[residue, place]].sum() == has[residue, place].sum()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize('function', [neighborhood_attention, unfused], ids=['fused', 'unfused'])
def test_lower_precision_is_as_exact_by_hand_as_in_pytorch(function, dtype):
    inputs = make_inputs((12, 21), (5, 5))
    d_out = torch.randn(inputs['q'].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = results(function, inputs, torch.float64, 'cpu', d_out)
    found = results(function, inputs, dtype, 'cpu', d_out)
    with SeesAll():
        plain = results(function, inputs, dtype, 'cpu', d_out)
    assert_as_exact_as(found, plain, exact, dtype)


def test_scores_are_those_of_the_keys_row_by_row():
    q = torch.randn(1, 4, 5, 6)
    k = torch.arange(20.0).view(1, 4, 5, 1).expand(-1, -1, -1, 6)
    scores = neighborhood_qk(torch.full_like(q, 1 / 3), k, 2, (3, 3), scale=1.0)
    assert scores.shape == (1, 2, 4, 5, 9)
    for head in range(2):
        assert_near(scores[0, head, 0, 4], torch.tensor([2.0, 3, 4, 7, 8, 9, 12, 13, 14]))
    scores = neighborhood_qk(torch.full_like(q, 1 / 3), k, 2, (3, 3), is_causal=(True, True), scale=1.0)
    infinite = -float('inf')
    expected = [infinite] * 3 + [infinite, 0, 1, infinite, 5, 6]
    assert torch.equal(scores[0, 0, 1, 1].round(), torch.tensor(expected))


def test_excluded_weights_are_not_used():
    weights = torch.ones(1, 1, 3, 3, 9, requires_grad=True)
    v = torch.ones(1, 3, 3, 2)
    for look in (torch.no_grad, SeesAll):  # by hand, and plain
        with look():
            out = neighborhood_av(weights, v, (3, 3), is_causal=(True, True))
        assert torch.equal(out[0, ..., 0], torch.tensor([[1.0, 2, 3], [2, 4, 6], [3, 6, 9]]))
    (d_weights,) = torch.autograd.grad(neighborhood_av(weights, v, (3, 3), is_causal=(True, True)).sum(), weights)
    assert d_weights[0, 0, 0, 0].count_nonzero() == 1 and d_weights[0, 0, 2, 2].all()


@pytest.mark.parametrize('function', [neighborhood_attention, unfused], ids=['fused', 'unfused'])
def test_any_strides_and_no_images(function):
    inputs = {name: x.float() if isinstance(x, Tensor) else x for name, x in make_inputs((6, 9), (3, 5)).items()}
    expected = function(**inputs)
    packed = torch.cat([inputs[name] for name in 'qkv'], -1)
    first = packed.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    for x in (packed, first):
        assert_near(function(**inputs | dict(zip('qkv', x.chunk(3, -1), strict=True))), expected)
    leaves = {name: inputs[name][:0].requires_grad_() for name in 'qkv'} | {'bias': inputs['bias'].requires_grad_()}
    out = function(**inputs | leaves)
    out.sum().backward()
    assert out.shape == (0, 6, 9, 6) and leaves['q'].grad.shape == leaves['q'].shape
    assert not leaves['bias'].grad.any()


def test_gradients_only_where_they_are_wanted():
    inputs = make_inputs((5, 21), (3, 5))
    whole = results(neighborhood_attention, inputs, torch.float64, 'cpu', torch.ones(2, 5, 21, 6))
    for name in ('q', 'k', 'v', 'bias'):
        leaf = inputs[name].clone().requires_grad_()
        (found,) = torch.autograd.grad(neighborhood_attention(**inputs | {name: leaf}).sum(), leaf)
        assert_near(found, whole[f'gradient of {name}'], 1e-12)


def test_dropout():
    torch.manual_seed(0)
    inputs = make_inputs((5, 6), (3, 3))
    with pytest.raises(ValueError, match='dropout: expected a rate from 0 to 1, got 2'):
        neighborhood_attention(**inputs, dropout=2.0)
    assert not neighborhood_attention(**inputs, dropout=1.0).any()
    inputs['v'] = torch.ones_like(inputs['v'])
    kept = neighborhood_attention(**inputs, dropout=0.5)
    assert 0.7 < kept.mean() < 1.3 and kept.std() > 0.1


def test_memory_does_not_grow_with_the_kernel():
    """Gathered keys and values would be 121 times as large as the map."""
    q = torch.randn(1, 48, 48, 32)
    peak = peak_bytes(lambda: neighborhood_attention(q, q, q, 1, (11, 11)), torch.device('cpu'))
    assert peak < 40 * q.nbytes


class Near(nn.Module):
    def __init__(self, kernel: tuple[int, int], dilation: tuple[int, int], is_causal: tuple[bool, bool]):
        super().__init__()
        self.kernel, self.dilation, self.is_causal = kernel, dilation, is_causal
        self.bias = nn.Parameter(torch.randn(2, 2 * kernel[0] - 1, 2 * kernel[1] - 1))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return neighborhood_attention(q, k, v, 2, self.kernel, self.dilation, self.bias, self.is_causal)


class NearInTwoSteps(Near):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = neighborhood_qk(q, k, 2, self.kernel, self.dilation, self.bias, self.is_causal)
        return neighborhood_av(scores.softmax(-1).to(v.dtype), v, self.kernel, self.dilation, self.is_causal)


@pytest.mark.parametrize('kind', [Near, NearInTwoSteps])
@pytest.mark.parametrize('causal', [False, True])
@over_all_onlookers
def test_does_the_same_whoever_looks_on(causal, kind, looks_on):
    torch.manual_seed(0)
    module = kind((3, 5), (2, 1), (causal, False))
    looks_on(module, *(torch.randn(2, 7, 8, 6) for _ in range(3)))


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(q=torch.zeros(5, 6, 4)), r'q: expected a map \[batch, height, width, channels\], got shape \(5, 6, 4\)'),
        (dict(q=torch.zeros(1, 5, 6, 4, dtype=torch.long)), 'q: expected a floating-point dtype, got torch.int64'),
        (
            dict(k=torch.zeros(1, 5, 5, 4)),
            r'k: expected \[batch, .*\] = \[1, 5, 6, 4\], got shape',
        ),
        (
            dict(v=torch.zeros(1, 5, 6, 8)),
            r'v: expected \[batch, .*\] = \[1, 5, 6, 4\], got shape',
        ),
        (dict(v=torch.zeros(1, 5, 6, 4).half()), 'v: expected the dtype of q, torch.float32, got torch.float16'),
        (dict(k=torch.zeros(1, 5, 6, 4, device='meta')), 'k: expected the device of q, cpu, got meta'),
        (dict(num_heads=3), 'num_heads: expected a divisor of the 4 channels of q, got 3'),
        (dict(kernel=(3, 4)), r'kernel: expected a kernel of odd height and width, got \(3, 4\)'),
        (dict(dilation=(1, 0)), r'dilation: expected at least 1 along both axes, got \(1, 0\)'),
        (
            dict(kernel=(3, 7)),
            r'kernel: expected kernel \* dilation within the map, 5 x 6, got \(3, 7\) \* \(1, 1\); '
            'pad the map to 5 x 7, or take an odd kernel of at most 5 x 6',
        ),
        (
            dict(dilation=(2, 2)),
            r'got \(3, 3\) \* \(2, 2\); pad the map to 6 x 6, or take an odd kernel of at most 2 x 3',
        ),
        (dict(bias=torch.zeros(2, 3, 3)), r'bias: expected .* = \[2, 5, 5\], got shape \(2, 3, 3\)'),
        (dict(valid=(0, 6)), r'valid: expected 1 to the size of the map, 5 x 6, got \(0, 6\)'),
    ],
)
def test_bad_input_is_named(changes, message):
    arguments = {name: torch.zeros(1, 5, 6, 4) for name in 'qkv'} | {'num_heads': 2, 'kernel': (3, 3)}
    with pytest.raises(ValueError, match=message):
        neighborhood_attention(**arguments | changes)
    if not {'v', 'weights'} & changes.keys():
        with pytest.raises(ValueError, match=message):
            unfused(**arguments | changes)


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            dict(weights=torch.zeros(1, 5, 6, 9)),
            r'weights: expected \[batch, num_heads, .*\], got shape',
        ),
        (dict(weights=torch.zeros(1, 2, 5, 6, 8)), r'weights: expected .* = \[1, 2, 5, 6, 9\], got shape'),
        (dict(weights=torch.zeros(1, 3, 5, 6, 9)), 'num_heads: expected a divisor of the 4 channels of v, got 3'),
        (dict(weights=torch.zeros(1, 2, 5, 6, 9).half()), 'weights: expected the dtype of v'),
        (dict(v=torch.zeros(1, 5, 4)), 'v: expected a map'),
        (dict(kernel=(2, 3)), 'kernel: expected a kernel of odd height and width'),
    ],
)
def test_bad_weights_are_named(changes, message):
    arguments = {'weights': torch.zeros(1, 2, 5, 6, 9), 'v': torch.zeros(1, 5, 6, 4), 'kernel': (3, 3)}
    with pytest.raises(ValueError, match=message):
        neighborhood_av(**arguments | changes)
