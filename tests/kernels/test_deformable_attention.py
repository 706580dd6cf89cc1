"""Deformable attention: values and gradients against sums over all pixels, and against PyTorch's `grid_sample`."""

import pytest
import torch
from onlookers import assert_near, over_all_onlookers
from torch import Tensor, nn
from torch.nn import functional as F

from attnzoo.kernels import deformable_attention
from attnzoo.kernels._cpu import by_hand
from attnzoo.kernels._measure import peak_bytes
from attnzoo.kernels._testing import results
from attnzoo.kernels.deformable_attention import eager_cpu, reference


def by_definition(values: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """All pixels of a level, each by how near it is to the point along both axes."""
    out, start = 0, 0
    for level, (height, width) in enumerate(shapes):
        pixels = values[:, start : start + height * width].unflatten(1, (height, width))
        start += height * width
        x, y = (locations[:, :, :, level] * torch.tensor([width, height]) - 0.5).unbind(-1)
        near_x = (1 - (x[..., None] - torch.arange(width)).abs()).clamp(min=0)
        near_y = (1 - (y[..., None] - torch.arange(height)).abs()).clamp(min=0)
        out = out + torch.einsum('bqnpx,bqnpy,bqnp,byxnd->bqnd', near_x, near_y, weights[:, :, :, level], pixels)
    return out.flatten(2)


def by_grid_sample(values: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """What the published models do without their kernel."""
    out, start = 0, 0
    for level, (height, width) in enumerate(shapes):
        maps = values[:, start : start + height * width].permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, (height, width))
        start += height * width
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        found = F.grid_sample(maps, grid, align_corners=False).unflatten(0, (-1, values.shape[2]))  # [B, N, d, Q, P]
        out = out + torch.einsum('bndqp,bqnp->bqnd', found, weights[:, :, :, level])
    return out.flatten(2)


def make_inputs(
    shapes=((5, 7), (3, 4)), batch: int = 2, queries: int = 6, heads: int = 2, head_dim: int = 3, points: int = 2
):
    """Points of which some lie beyond the map, by any distance."""
    generator = torch.Generator().manual_seed(0)

    def new(function, *shape):
        return function(shape, generator=generator, dtype=torch.float64)

    return {
        'values': new(torch.randn, batch, sum(height * width for height, width in shapes), heads, head_dim),
        'shapes': list(shapes),
        'locations': new(torch.randn, batch, queries, heads, len(shapes), points, 2) * 0.5 + 0.5,
        'weights': new(torch.rand, batch, queries, heads, len(shapes), points),
    }


def gradient_of(inputs) -> Tensor:
    batch, queries, heads = inputs['locations'].shape[:3]
    generator = torch.Generator().manual_seed(1)
    channels = heads * inputs['values'].shape[3]
    return torch.randn(batch, queries, channels, generator=generator, dtype=torch.float64)


CASES = {
    'two levels': dict(),
    'three heads, one point': dict(heads=3, points=1),
    'one pixel, one row, one column': dict(shapes=((1, 1), (1, 4), (3, 1), (2, 2))),
    'more queries than pixels': dict(shapes=((2, 3),), queries=40),
    'as DETR has them': dict(shapes=((8, 6), (4, 3), (2, 2), (1, 1)), queries=66, heads=4, head_dim=8, points=4),
}


@pytest.mark.parametrize('parts', ['one part', 'many parts'])
@pytest.mark.parametrize('case', CASES)
def test_equals_the_definition(case, parts, monkeypatch):
    if parts == 'many parts':
        monkeypatch.setattr(eager_cpu, 'PART_POINTS', 1)
    inputs = make_inputs(**CASES[case])
    d_out = gradient_of(inputs)
    found, expected = (results(f, inputs, torch.float64, 'cpu', d_out) for f in (deformable_attention, by_definition))
    for name, true in expected.items():
        assert_near(found[name], true, 1e-12)


def test_sampling_as_on_a_gpu_equals_the_definition():
    def sample(*arguments):
        return by_hand(reference._sample, reference._backward_of_sample, reference._plain, *arguments)

    inputs = make_inputs()
    d_out = gradient_of(inputs)
    found = results(lambda **x: sample(*x.values()), inputs, torch.float64, 'cpu', d_out)
    for name, true in results(by_definition, inputs, torch.float64, 'cpu', d_out).items():
        assert_near(found[name], true, 1e-12)


def test_points_on_pixels_and_beyond_the_edge_have_the_gradients_of_grid_sample():
    """Models begin with points on pixel centres, where the derivative towards the next pixel counts."""
    inputs = make_inputs(shapes=((4, 8), (2, 4)), queries=20)
    places = torch.randint(-3, 12, inputs['locations'].shape, generator=torch.Generator().manual_seed(2))
    inputs['locations'] = (places + 0.5) / torch.tensor([[8.0, 4.0], [4.0, 2.0]])[:, None]
    d_out = gradient_of(inputs)
    found, expected = (results(f, inputs, torch.float64, 'cpu', d_out) for f in (deformable_attention, by_grid_sample))
    for name, true in expected.items():
        assert_near(found[name], true, 1e-12)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_values_at_exact_points(dtype):
    inputs = make_inputs(**CASES['as DETR has them'])
    inputs['values'] = inputs['values'].to(dtype).double()
    single = {name: x.float() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    half = single | {'values': inputs['values'].to(dtype).requires_grad_()}
    single['values'].requires_grad_()
    for x in (half, single):
        x['locations'] = x['locations'].clone().requires_grad_()
        x['weights'] = x['weights'].clone().requires_grad_()
    d_out = gradient_of(inputs).to(dtype)
    outs = [deformable_attention(**half), deformable_attention(**single)]
    assert outs[0].dtype == dtype
    found, expected = (
        [out, *torch.autograd.grad(out, [x['values'], x['locations'], x['weights']], d_out.to(out.dtype))]
        for out, x in zip(outs, (half, single), strict=True)
    )
    for one, true in zip(found, expected, strict=True):
        assert_near(one.float(), true, 8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize('wanted', ['values', 'locations', 'weights'])
def test_each_gradient_alone_is_that_of_all(wanted):
    inputs = make_inputs()
    d_out = gradient_of(inputs)
    expected = results(deformable_attention, inputs, torch.float64, 'cpu', d_out)
    inputs[wanted].requires_grad_()
    (found,) = torch.autograd.grad(deformable_attention(**inputs), inputs[wanted], d_out)
    assert torch.equal(found, expected[f'gradient of {wanted}'])


def test_any_strides_and_nothing_at_all():
    inputs = make_inputs()
    expected = deformable_attention(**inputs)
    turned = {
        'values': inputs['values'].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        'shapes': inputs['shapes'],
        'locations': inputs['locations'].flip(1).flip(1).transpose(2, 4).contiguous().transpose(2, 4),
        'weights': torch.stack([inputs['weights']] * 2, -1)[..., 0],
    }
    assert torch.equal(deformable_attention(**turned), expected)
    for empty in (dict(batch=0), dict(queries=0)):
        inputs = make_inputs(**empty)
        inputs['values'].requires_grad_()
        out = deformable_attention(**inputs)
        (d_values,) = torch.autograd.grad(out.sum(), inputs['values'])
        assert out.numel() == 0 and out.shape[2] == 6 and not d_values.any()


def test_the_same_bits_with_any_number_of_threads(monkeypatch):
    inputs = make_inputs(shapes=((40, 50), (20, 25)), queries=2500)
    d_out = gradient_of(inputs)
    threads, found = torch.get_num_threads(), []
    for number in (1, 3):
        torch.set_num_threads(number)
        found.append(results(deformable_attention, inputs, torch.float32, 'cpu', d_out))
    torch.set_num_threads(threads)
    for name, x in found[0].items():
        assert torch.equal(x, found[1][name]), name


def test_takes_less_than_half_of_the_memory_of_grid_sample():
    shapes = [(32, 40), (16, 20), (8, 10), (4, 5)]
    inputs = make_inputs(shapes, 1, sum(h * w for h, w in shapes), 8, 32, 4)
    values, locations, weights = (inputs[name].float().requires_grad_() for name in ('values', 'locations', 'weights'))

    def train(function):
        out = function(values, shapes, locations, weights)
        return torch.autograd.grad(out, [values, locations, weights], out.detach())

    ours, theirs = (
        peak_bytes(lambda f=f: train(f), torch.device('cpu')) for f in (deformable_attention, by_grid_sample)
    )
    assert ours < theirs / 2


class Deformable(nn.Module):
    def forward(self, values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return deformable_attention(values, [(4, 5), (2, 3)], locations, weights)


@over_all_onlookers
def test_does_the_same_whoever_looks_on(looks_on):
    torch.manual_seed(0)
    values, locations, weights = torch.randn(3, 26, 2, 4), torch.rand(3, 7, 2, 2, 3, 2), torch.rand(3, 7, 2, 2, 3)
    looks_on(Deformable(), values, locations, weights)


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            dict(values=torch.zeros(2, 47, 6)),
            r'values: expected \[batch, positions, heads, head dim\], got ',
        ),
        (dict(values=torch.zeros(2, 46, 2, 3)), 'values: expected 47 positions, .* got 46'),
        (dict(shapes=[]), r'shapes: expected a height and width of at least 1 for each level, got \[\]'),
        (dict(shapes=[(5, 7), (12, 0)]), 'shapes: expected a height and width of at least 1'),
        (dict(locations=torch.zeros(2, 6, 2, 1, 2, 2)), 'locations: .* 2 heads and 2 levels, got shape'),
        (dict(locations=torch.zeros(1, 6, 2, 2, 2, 2)), 'locations: .* a batch of 2, '),
        (dict(locations=torch.zeros(2, 6, 2, 2, 2, 3)), 'locations: expected x and y on the last axis'),
        (
            dict(weights=torch.zeros(2, 6, 2, 2, 3)),
            r'weights: expected .* = \[2, 6, 2, 2, 2\], got shape',
        ),
        (dict(weights=torch.zeros(2, 6, 2, 2, 2, dtype=torch.long)), 'weights: expected a floating-point dtype'),
        (dict(weights=torch.zeros(2, 6, 2, 2, 2, device='meta')), 'weights: expected the device of values, cpu'),
    ],
)
def test_bad_input_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        deformable_attention(**make_inputs() | changes)
