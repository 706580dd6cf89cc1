"""The loops that attentions share carry other geometries than windows, as exact as the references of their ops."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from attnzoo.kernels import (
    aot,
    halo_attention,
    neighborhood_attention,
    neighborhood_av,
    neighborhood_qk,
    routed_attention,
)
from attnzoo.kernels._launch import recording
from attnzoo.kernels._report.model import DEVICES
from attnzoo.kernels._testing import assert_as_exact_as

triton = pytest.importorskip('triton')

from attention_geometries import (  # noqa: E402  (Triton may be missing)
    BLOCK_WINDOW,
    HEAD_DIM,
    HEADS,
    KERNEL,
    SIDE,
    aggregated,
    bias_gradient_of_kinds,
    halo,
    masked,
    neighborhood,
    routed,
    run,
)


def expected(attention: Any, q: Tensor, sources: Sequence[tuple[Tensor, Tensor]], d_out: Tensor) -> dict[str, Tensor]:
    leaves = [x.clone().requires_grad_() for x in (q, *(x for pair in sources for x in pair))]
    out = attention(*leaves)
    names = ['q', *(f'{name}{i}' for i in range(len(sources)) for name in 'kv')]
    grads = torch.autograd.grad(out, leaves, d_out)
    return {'output': out.detach()} | {f'gradient of {name}': x for name, x in zip(names, grads, strict=True)}


def assert_exact(found: dict[str, Tensor], attention: Any, given: Any) -> None:
    exact = expected(attention, *converted(*given, torch.float64))
    assert_as_exact_as(found, expected(attention, *given), exact, torch.float32)


def maps(height: int, width: int, device: torch.device | str, small: bool = False) -> Any:
    """q, the sources of keys and values, and the output's gradient."""

    def random(height: int, width: int) -> Tensor:
        return torch.randn(3, height, width, HEADS * HEAD_DIM, generator=generator).to(device)

    generator = torch.Generator().manual_seed(0)
    q, k, v, d_out = (random(height, width) for _ in range(4))
    return q, [(k, v), (random(SIDE, SIDE), random(SIDE, SIDE))] if small else [(k, v)], d_out


def converted(q: Tensor, sources: Sequence[tuple[Tensor, Tensor]], d_out: Tensor, *to: Any) -> Any:
    return q.to(*to), [(k.to(*to), v.to(*to)) for k, v in sources], d_out.to(*to)


def random_bias() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(HEADS, 2 * KERNEL - 1, 2 * KERNEL - 1, generator=generator)


def random_relative() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    height_rel, width_rel = torch.randn(2, 2 * BLOCK_WINDOW - 1, HEAD_DIM, generator=generator)
    return height_rel, width_rel


def random_mask(tokens: int) -> Tensor:
    """Of three images; each query has a key."""
    generator = torch.Generator().manual_seed(4)
    allowed = torch.rand(3, tokens, tokens, generator=generator) < 0.3
    return torch.zeros(allowed.shape).masked_fill(~(allowed | torch.eye(tokens, dtype=torch.bool)), float('-inf'))


def random_routes(regions: int) -> Tensor:
    """Of each region to two: all are routed to region 0, and none to the last."""
    generator = torch.Generator().manual_seed(1)
    others = torch.randint(1, regions - 1, (3, regions, 1), generator=generator)
    return torch.cat([torch.zeros_like(others), others], 2)


@pytest.mark.kernel
@pytest.mark.usefixtures('poisoned')
@pytest.mark.parametrize('packed', [False, True], ids=['', 'heads in the rows of a tile'])
def test_keys_that_the_data_choose(packed: bool, kernel_device: torch.device) -> None:
    given, regions = maps(8, 12, kernel_device), (4, 3) if packed else (2, 3)
    routes = random_routes(regions[0] * regions[1]).to(kernel_device)
    found = run(*given, **routed(routes, packed))

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return routed_attention(q, k, v, routes, HEADS, regions)

    assert_exact(found, attention, given)
    of_k = found['gradient of k0']
    assert of_k[:, : 8 // regions[0], :4].any() and not of_k[:, -8 // regions[0] :, 8:].any()


@pytest.mark.kernel
@pytest.mark.usefixtures('poisoned')
@pytest.mark.parametrize('stacked', [False, True], ids=['', 'tiles in stacks'])
def test_keys_around_a_query(stacked: bool, kernel_device: torch.device) -> None:
    given, bias = maps(12, 8, kernel_device), random_bias().to(kernel_device)
    found = run(*given, **neighborhood(bias, stacked))

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return neighborhood_attention(q, k, v, HEADS, (KERNEL, KERNEL), bias=bias.to(q.dtype))

    assert_exact(found, attention, given)


@pytest.mark.kernel
@pytest.mark.usefixtures('poisoned')
def test_gradient_of_a_bias_by_kinds_of_tiles(kernel_device: torch.device) -> None:
    q, sources, d_out = maps(16, 8, kernel_device)
    found = run(q, sources, d_out, **neighborhood(random_bias().to(kernel_device), by_kind=True))

    def gradient(dtype: torch.dtype) -> dict[str, Tensor]:
        bias = random_bias().to(kernel_device, dtype).requires_grad_()
        q_, [(k, v)], d_out_ = converted(q, sources, d_out, dtype)
        neighborhood_attention(q_, k, v, HEADS, (KERNEL, KERNEL), bias=bias).backward(d_out_)
        assert bias.grad is not None
        return {'bias': bias.grad}

    of_bias = {'bias': bias_gradient_of_kinds(found['pairs'])}
    assert_as_exact_as(of_bias, gradient(torch.float32), gradient(torch.float64), torch.float32)


@pytest.mark.kernel
@pytest.mark.usefixtures('poisoned')
def test_keys_of_two_maps_under_one_softmax(kernel_device: torch.device) -> None:
    given = maps(12, 8, kernel_device, small=True)
    bias = random_bias().to(kernel_device)
    found = run(*given, **aggregated(bias))

    def attention(q: Tensor, k: Tensor, v: Tensor, small_k: Tensor, small_v: Tensor) -> Tensor:
        heads = (x.unflatten(3, (HEADS, HEAD_DIM)).flatten(1, 2).transpose(1, 2) for x in (q, small_k, small_v))
        q_heads, small_k, small_v = heads
        near = neighborhood_qk(q, k, HEADS, (KERNEL, KERNEL), bias=bias.to(q.dtype))
        far = (q_heads * HEAD_DIM**-0.5 @ small_k.transpose(2, 3)).view(*near.shape[:4], -1)
        weights = torch.cat([near, far], 4).softmax(4)
        near, far = weights.split([KERNEL**2, SIDE**2], 4)
        mean = (far.flatten(2, 3) @ small_v).transpose(1, 2).reshape(q.shape)
        return neighborhood_av(near, v, (KERNEL, KERNEL)) + mean

    assert_exact(found, attention, given)


@pytest.mark.kernel
@pytest.mark.usefixtures('poisoned')
def test_logits_that_depend_on_the_query(kernel_device: torch.device) -> None:
    given = maps(12, 8, kernel_device)
    height_rel, width_rel = (x.to(kernel_device) for x in random_relative())
    found = run(*given, **halo(height_rel, width_rel))

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        relative = height_rel.to(q.dtype), width_rel.to(q.dtype)
        return halo_attention(q, k, v, *relative, HEADS, (SIDE, SIDE), (1, 1))

    assert_exact(found, attention, given)


@pytest.mark.kernel
@pytest.mark.usefixtures('poisoned')
def test_mask_read_once_for_all_heads(kernel_device: torch.device) -> None:
    given, mask = maps(4, 8, kernel_device), random_mask(32).to(kernel_device)
    found = run(*given, **masked(mask))

    def attention(*qkv: Tensor) -> Tensor:
        q, k, v = (x.unflatten(3, (HEADS, HEAD_DIM)).flatten(1, 2).transpose(1, 2) for x in qkv)
        weights = (q * HEAD_DIM**-0.5 @ k.transpose(2, 3) + mask.unsqueeze(1).to(q.dtype)).softmax(3)
        return (weights @ v).transpose(1, 2).reshape(qkv[0].shape)

    assert_exact(found, attention, given)


def on_meta(x: Any) -> Any:
    """What a geometry is given, with its tensors nowhere."""
    if isinstance(x, dict):
        return {name: on_meta(value) for name, value in x.items()}
    if isinstance(x, tuple):
        return tuple(map(on_meta, x))
    return x.to('meta') if isinstance(x, Tensor) else x


@pytest.mark.skipif(triton.knobs.runtime.interpret, reason="the interpreter's functions cannot be compiled")
@pytest.mark.parametrize(
    ('given', 'size'),
    [
        pytest.param(routed(random_routes(6)), (8, 12), id='routed'),
        pytest.param(routed(random_routes(12), packed=True), (8, 12), id='routed, packed'),
        pytest.param(neighborhood(random_bias(), by_kind=True), (16, 8), id='neighborhood'),
        pytest.param(neighborhood(random_bias(), stacked=True), (12, 8), id='neighborhood, stacked'),
        pytest.param(aggregated(random_bias()), (12, 8), id='aggregated'),
        pytest.param(halo(*random_relative()), (12, 8), id='halo'),
        pytest.param(masked(random_mask(32)), (4, 8), id='masked'),
    ],
)
def test_all_compile(given: dict[str, Any], size: tuple[int, int]) -> None:
    device, two = DEVICES['sm_90'], 'SOURCES' in given
    with recording(device.target) as launches:
        run(*converted(*maps(*size, 'cpu', small=two), 'meta', torch.bfloat16), **on_meta(given))
    assert len(launches) == (4 if two else 3)
    head = {'op': '', 'direction': '', 'dtype': 'bf16', 'shape': '', 'target': 'sm_90'}
    for one in launches:
        row = aot._compile(aot._job(one, device, head))
        assert row.fits and row.tensor > 0, row
