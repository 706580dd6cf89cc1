"""Aggregated attention against its definition, position by position, and by parts of any size."""

import pytest
import torch
from onlookers import assert_near, over_all_onlookers
from torch import Tensor, nn
from torch.nn import functional as F

from attnzoo.kernels import aggregated_attention
from attnzoo.kernels._testing import results
from attnzoo.kernels.aggregated_attention import eager_cpu, reference

PARAMETERS = ('temperature', 'query_embedding', 'local_bias', 'pool_bias', 'tokens', 'token_bias')


def by_definition(
    q, kv, pool_kv, temperature, query_embedding, local_bias, pool_bias, tokens, token_bias, num_heads, window=(3, 3)
):
    """One softmax for each position and head, over lists of its keys."""
    batch, height, width, channels = q.shape
    d = channels // num_heads
    images = []
    for b in range(batch):
        pooled = pool_kv[b].flatten(0, 1)
        positions = []
        for y in range(height):
            for x in range(width):
                heads = []
                for h in range(num_heads):
                    part = slice(h * d, h * d + d)
                    value_part = slice(channels + h * d, channels + h * d + d)
                    unit_q = F.normalize(q[b, y, x, part], dim=0)
                    keys, values, biases, learned = [], [], [], []
                    for o in range(window[0] * window[1]):
                        row, column = y + o // window[1] - window[0] // 2, x + o % window[1] - window[1] // 2
                        if 0 <= row < height and 0 <= column < width:
                            keys.append(kv[b, row, column, part])
                            values.append(kv[b, row, column, value_part])
                            biases.append(local_bias[h, o])
                            learned.append(unit_q @ tokens[h, :, o] + token_bias[h, 0, o])
                    keys = F.normalize(torch.cat([torch.stack(keys), pooled[:, part]]), dim=1)
                    values = torch.cat([torch.stack(values), pooled[:, value_part]])
                    bias = torch.cat([torch.stack(biases), pool_bias[h, y * width + x]])
                    scale = F.softplus(temperature[h, 0, 0]) * torch.tensor(float(len(keys)), dtype=q.dtype).log()
                    weights = (keys @ (unit_q + query_embedding[h, 0]) * scale + bias).softmax(0)
                    weights = weights + F.pad(torch.stack(learned), (0, len(pooled)))
                    heads.append(weights @ values)
                positions.append(torch.cat(heads))
        images.append(torch.stack(positions).unflatten(0, (height, width)))
    return torch.stack(images)


def make_inputs(batch=2, size=(4, 5), num_heads=2, head_dim=6, pooled=(2, 2), window=(3, 3)):
    generator = torch.Generator().manual_seed(0)

    def new(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    channels, neighbours = num_heads * head_dim, window[0] * window[1]
    return {
        'q': new(batch, *size, channels),
        'kv': new(batch, *size, 2 * channels),
        'pool_kv': new(batch, *pooled, 2 * channels),
        'temperature': new(num_heads, 1, 1),
        'query_embedding': new(num_heads, 1, head_dim),
        'local_bias': new(num_heads, neighbours),
        'pool_bias': new(num_heads, size[0] * size[1], pooled[0] * pooled[1]),
        'tokens': new(num_heads, head_dim, neighbours),
        'token_bias': new(num_heads, 1, neighbours),
        'num_heads': num_heads,
        'window': window,
    }


CASES = {
    'a rectangle': dict(),
    'heads of 24 channels': dict(batch=1, size=(3, 3), num_heads=1, head_dim=24, pooled=(1, 1)),
    'one row, one pooled token': dict(batch=1, size=(1, 4), num_heads=3, head_dim=2, pooled=(1, 1)),
    'one position': dict(batch=3, size=(1, 1), pooled=(1, 1)),
    'a wide window, larger than the map': dict(batch=1, size=(3, 4), window=(3, 7)),
    'a window of one': dict(size=(2, 3), window=(1, 1)),
    'all of the map as pooled map': dict(batch=1, size=(3, 4), pooled=(3, 4)),
}


@pytest.mark.parametrize('case', CASES)
def test_equals_the_definition(case):
    inputs = make_inputs(**CASES[case])
    d_out = torch.randn(inputs['q'].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = results(by_definition, inputs, torch.float64, 'cpu', d_out)
    for function in (aggregated_attention, reference._plain):
        for name, found in results(function, inputs, torch.float64, 'cpu', d_out).items():
            assert_near(found, expected[name], 1e-11)


@pytest.mark.parametrize('pairs', [1, 2, 3, 4, 7, 100])
def test_parts_of_any_size(pairs, monkeypatch):
    """Some of the heads of an image, or some images: the last part is often smaller than the others."""
    inputs = make_inputs(batch=5, num_heads=3, head_dim=2)
    d_out = torch.randn(inputs['q'].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = results(reference._plain, inputs, torch.float64, 'cpu', d_out)
    map_bytes = 2 * 4 * (5 + 2) * 8  # with the border of a window of 3
    monkeypatch.setattr(eager_cpu, 'PART_BYTES', pairs * map_bytes)
    for name, found in results(aggregated_attention, inputs, torch.float64, 'cpu', d_out).items():
        assert_near(found, expected[name], 1e-12)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_lower_precision(dtype):
    inputs = make_inputs(head_dim=24)
    d_out = torch.randn(inputs['q'].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # What the dtype's rounding of the inputs does is not the op's error.
    rounded = {name: x.to(dtype).double() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    exact = results(aggregated_attention, rounded, torch.float64, 'cpu', d_out.to(dtype).double())
    by_hand = results(aggregated_attention, inputs, dtype, 'cpu', d_out)
    in_pytorch = results(reference._plain, inputs, dtype, 'cpu', d_out)
    for name, true in exact.items():
        assert by_hand[name].dtype == in_pytorch[name].dtype == dtype
        assert_near(by_hand[name].double(), true, 32 * torch.finfo(dtype).eps)
        assert_near(in_pytorch[name].double(), true, 64 * torch.finfo(dtype).eps)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_tokens_of_zeros_stay_finite(dtype):
    inputs = make_inputs()
    for name in ('q', 'kv', 'pool_kv'):
        inputs[name][0] = 0.0
    with torch.no_grad():
        for function in (aggregated_attention, reference._plain):
            typed = {name: x.to(dtype) if isinstance(x, Tensor) else x for name, x in inputs.items()}
            assert function(**typed).isfinite().all()


def test_parameters_in_float32_beside_maps_in_bfloat16():
    """As under autocast."""
    inputs = {name: x.float() if isinstance(x, Tensor) else x for name, x in make_inputs().items()}
    for name in ('q', 'kv', 'pool_kv'):
        inputs[name] = inputs[name].bfloat16()
    for name in PARAMETERS:
        inputs[name].requires_grad_()
    out, expected = aggregated_attention(**inputs), reference._plain(**inputs)
    assert out.dtype == torch.bfloat16
    assert_near(out, expected, 0.02)
    for parameter in (inputs[name] for name in PARAMETERS):
        (grad,) = torch.autograd.grad(out.float().square().sum(), parameter, retain_graph=True)
        (other,) = torch.autograd.grad(expected.float().square().sum(), parameter, retain_graph=True)
        assert_near(grad, other, 0.03)


def test_any_strides_and_no_images():
    inputs = make_inputs()
    expected = aggregated_attention(**inputs)
    strided = dict(inputs)
    for name in ('q', 'kv', 'pool_kv'):
        strided[name] = inputs[name].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    strided['pool_bias'] = inputs['pool_bias'].mT.contiguous().mT
    assert_near(aggregated_attention(**strided), expected, 1e-12)
    d_out = torch.ones(1, 1, 1, 1, dtype=torch.float64).expand(expected.shape)
    for name, found in results(aggregated_attention, strided, torch.float64, 'cpu', d_out).items():
        assert_near(found, results(reference._plain, inputs, torch.float64, 'cpu', d_out)[name], 1e-12)
    found = results(aggregated_attention, make_inputs(0), torch.float32, 'cpu', torch.ones(0, 4, 5, 12))
    assert found['output'].shape == (0, 4, 5, 12) and not found['gradient of tokens'].any()


def test_dropout_leaves_out_whole_keys():
    """Without learned weights, and with values of one, what is left is the sum of the scaled weights that are kept."""
    inputs = make_inputs(batch=8)
    inputs['tokens'].zero_()
    inputs['token_bias'].zero_()
    inputs['kv'][..., 12:], inputs['pool_kv'][..., 12:] = 1.0, 1.0
    torch.testing.assert_close(aggregated_attention(**inputs), torch.ones_like(inputs['q']))
    torch.manual_seed(0)
    out = aggregated_attention(**inputs, dropout=0.5)
    assert 0.9 < out.mean() < 1.1 and out.std() > 0.1


class Aggregated(nn.Module):
    def __init__(self):
        super().__init__()
        for name, x in make_inputs().items():
            if name in PARAMETERS:
                self.register_parameter(name, nn.Parameter(x.float()))

    def forward(self, q: Tensor, kv: Tensor, pool_kv: Tensor) -> Tensor:
        return aggregated_attention(
            q,
            kv,
            pool_kv,
            self.temperature,
            self.query_embedding,
            self.local_bias,
            self.pool_bias,
            self.tokens,
            self.token_bias,
            2,
        )


@over_all_onlookers
def test_does_the_same_whoever_looks_on(looks_on, monkeypatch):
    monkeypatch.setattr(eager_cpu, 'PART_BYTES', 1)
    inputs = make_inputs(3)
    looks_on(Aggregated(), *(inputs[name].float() for name in ('q', 'kv', 'pool_kv')))


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(q=torch.zeros(4, 5, 12)), r'q: expected a map .* got shape \(4, 5, 12\)'),
        (dict(kv=torch.zeros(2, 4, 5, 24)), r'kv: expected the dtype of q, .* got torch.float32'),
        (dict(num_heads=5), 'num_heads: expected a divisor of the 12 channels of q, got 5'),
        (dict(kv=torch.zeros(2, 4, 5, 12).double()), r'kv: expected \(2, 4, 5, 24\), .* got \(2, 4, 5, 12\)'),
        (dict(pool_kv=torch.zeros(2, 2, 2, 12).double()), r'pool_kv: expected \[2, height, width, 24\]'),
        (dict(pool_kv=torch.zeros(1, 2, 2, 24).double()), r'pool_kv: .* got \(1, 2, 2, 24\)'),
        (dict(window=(3, 2)), r'window: expected a kernel of odd height and width, got \(3, 2\)'),
        (dict(window=(5, 3)), r'local_bias: expected \[num_heads, neighbours\] = \[2, 15\], got shape \(2, 9\)'),
        (
            dict(temperature=torch.zeros(2)),
            r'temperature: expected \[num_heads, 1, 1\] = \[2, 1, 1\], got shape \(2,\)',
        ),
        (
            dict(query_embedding=torch.zeros(2, 6)),
            r'query_embedding: expected \[num_heads, 1, head dim\] = \[2, 1, 6\]',
        ),
        (
            dict(pool_bias=torch.zeros(2, 4, 20)),
            r'pool_bias: expected \[num_heads, positions, pooled positions\] = \[2, 20, 4\], got shape \(2, 4, 20\)',
        ),
        (dict(tokens=torch.zeros(2, 9, 6)), r'tokens: expected \[num_heads, head dim, neighbours\] = \[2, 6, 9\]'),
        (dict(token_bias=torch.zeros(2, 9)), r'token_bias: expected \[num_heads, 1, neighbours\] = \[2, 1, 9\]'),
        (dict(tokens=torch.zeros(2, 6, 9, device='meta')), 'tokens: expected the device of q, cpu, got meta'),
        (dict(dropout=-0.1), 'dropout: expected a rate from 0 to 1, got -0.1'),
    ],
)
def test_bad_input_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        aggregated_attention(**make_inputs() | changes)
