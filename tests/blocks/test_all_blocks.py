"""What every block does: any size, batch, layout and precision, and under everything that may look on."""

import io
import itertools
from collections.abc import Callable

import pytest
import torch
from all_blocks import BLOCKS, INSIDE
from onlookers import ONLOOKERS, assert_all_near, assert_near, gradients, to_fx, without_their_warnings
from torch import Tensor, nn

from attnzoo import blocks

over_all_blocks = pytest.mark.parametrize('block', [pytest.param(block, id=name) for name, block in BLOCKS.items()])

# What takes seconds a block, which ops meet in every run. What takes most of a second is left out by other ways to use
# a block, and by those that are made of others.
SLOW = {'onnx_by_dynamo', 'compiled_for_any_size'}
SLOW_BUT_ONCE = {'compiled', 'exported', 'make_fx_graph', 'make_fx_before_dispatch', 'onnx_by_tracing'}
COMPOSED = {'DualAttention', 'MultiAxisAttention', 'VanAttention'}


def is_slow(name: str, what: str) -> bool:
    return what in SLOW or (what in SLOW_BUT_ONCE and (',' in name or name in COMPOSED))


def pairs(others: dict[str, Callable]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        'block, other',
        [
            pytest.param(block, other, id=f'{what}-{name}', marks=pytest.mark.slow if is_slow(name, what) else [])
            for (what, other), (name, block) in itertools.product(others.items(), BLOCKS.items())
            if what not in block.not_by
        ],
    )


def test_every_block_is_in_the_list():
    classes = {name for name in blocks.__all__ if isinstance(getattr(blocks, name), type)}
    assert {name.partition(',')[0] for name in BLOCKS} | INSIDE.keys() == classes
    for name, block in BLOCKS.items():
        assert type(block.new(device='meta')) is getattr(blocks, name.partition(',')[0]), name
    for name, block in INSIDE.items():
        assert any(type(part) is getattr(blocks, name) for part in BLOCKS[block].new().modules())


@without_their_warnings
@pairs(ONLOOKERS)
def test_does_the_same_whoever_looks_on(block, other):
    """With dropout where it has one, of which evaluation knows nothing."""
    rates = {name: 0.2 for name in ('attn_drop', 'proj_drop') if block.takes(name)}
    other(block.new(**rates), block.map())


def scripted(module: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    return torch.jit.script(module)


def traced_by_fx(module: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    return to_fx(module)


def compiled_for_any_size(module: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    torch.compiler.reset()
    module = torch.compile(module, fullgraph=True, backend='aot_eager')
    module(x)
    return module


@without_their_warnings
@pairs({f.__name__: f for f in (scripted, traced_by_fx, compiled_for_any_size)})
def test_a_graph_serves_other_sizes(block, other):
    module = block.new()
    if block.by_size:
        pytest.skip('it is made for maps of one size')
    graph = other(module, block.map())
    for x in (block.map((7, 13), 1), block.map(block.least)):
        assert_near(graph(x), module(x))


@pytest.mark.parametrize('size', [(7, 9), (17, 5), (5, 17), (1, 8), (1, 1)], ids=str)
@over_all_blocks
def test_any_size(block, size):
    """Finite, a gradient for each parameter, and each image gives what it gives alone."""
    size = tuple(max(n, least) for n, least in zip(size, block.least, strict=True))
    module, x = block.new(size), block.map(size)
    out, *found = gradients(module, module, (x,))
    assert out.isfinite().all() and all(gradient.isfinite().all() for gradient in found)
    if size == (7, 9):
        for (name, _), gradient in zip([('x', x), *module.named_parameters()], found, strict=True):
            assert gradient.any(), f'{name} has no part in the result'
    for i in range(2):
        assert_near(module(x[i : i + 1]), out[i : i + 1])


@over_all_blocks
def test_no_images(block):
    module = block.new().train()
    x = block.map(batch=0).requires_grad_()
    out = module(x)
    assert out.shape == (0, *module.eval()(block.map()).shape[1:])
    for gradient in torch.autograd.grad(out.sum(), [x, *module.parameters()], allow_unused=True):
        assert gradient is None or not gradient.any()


def part_of_a_larger_map(x: Tensor) -> Tensor:
    return torch.cat([x, x + 1], 1)[:, : x.shape[1]]


def every_second_value(x: Tensor) -> Tensor:
    return torch.stack([x, x + 1], -1)[..., 0]


def in_order(*axes: int) -> Callable[[Tensor], Tensor]:
    """The same map, whose axes lie in this order in memory."""
    return lambda x: x.permute(axes).contiguous().permute(*(axes.index(i) for i in range(4)))


PLACES = {
    'part of a larger map': part_of_a_larger_map,
    'every second value': every_second_value,
    'last axis first': in_order(0, 3, 1, 2),
    'first axis last': in_order(0, 2, 3, 1),
    'transposed': in_order(0, 1, 3, 2),
}


@pytest.mark.parametrize('place', PLACES.values(), ids=PLACES)
@over_all_blocks
def test_any_place_in_memory(block, place):
    module, x = block.new(), block.map()
    other = place(x)
    assert torch.equal(other, x) and not other.is_contiguous()
    assert_all_near(gradients(module, module, (other,)), gradients(module, module, (x,)), 2e-5)


@over_all_blocks
def test_channels_first_blocks_keep_the_memory_format(block):
    if block.channels_first:
        module, x = block.new(), block.map()
        assert module(x).is_contiguous()
        assert module(x.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64], ids=str)
@over_all_blocks
def test_other_precisions(block, dtype):
    exact = block.new().double()(block.map().double())
    found = block.new(dtype=dtype)
    found.load_state_dict(block.new().state_dict())
    out = found(block.map().to(dtype))
    assert out.dtype == dtype
    if block.continuous:
        assert_near(out.double(), exact, 20 * torch.finfo(dtype).eps)


@over_all_blocks
def test_autocast_is_near(block):
    """Gradients of some parameters are small sums of large terms, and nothing but finite in half precision."""
    module, x = block.new(), block.map()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = gradients(module, module, (x,))
    assert all(one.isfinite().all() for one in found)
    if block.continuous:
        for one, exact in zip(found[:2], gradients(module, module, (x,)), strict=False):
            assert_near(one.to(exact.dtype), exact, 0.05)


@over_all_blocks
def test_meta_device_and_back(block):
    """Made on the meta device, it runs there; behind `to_empty` it gets back what no file holds."""
    expected, module = block.new(), block.new(device='meta')
    assert all(tensor.is_meta for tensor in [*module.parameters(), *module.buffers()])
    out = module(block.map().to('meta'))
    assert out.is_meta and out.shape == expected(block.map()).shape
    module.to_empty(device='cpu')
    for buffer in module.buffers():
        buffer.fill_(-1)
    for part in module.modules():
        if hasattr(part, 'init_non_persistent_buffers'):
            part.init_non_persistent_buffers()
    module.load_state_dict(expected.state_dict())
    assert torch.equal(module(block.map()), expected(block.map()))


@over_all_blocks
def test_a_file_holds_all_of_it(block):
    file = io.BytesIO()
    module = block.new()
    torch.save(module.state_dict(), file)
    other = block.make(block.size) if block.by_size else block.make()
    file.seek(0)
    other.eval().load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(block.map()), module(block.map()))


@over_all_blocks
def test_input_that_is_no_such_map_is_named(block):
    if not block.maps_only:
        pytest.skip('it takes any tensor of so many channels')
    module, x, (height, width) = block.new(), block.map(), block.size
    axes = ['height', 'width']
    axes.insert(0 if block.channels_first else 2, f'{block.channels} channels')
    if block.channels_first:
        turned, turn = x.permute(0, 2, 3, 1), 'x.permute(0, 3, 1, 2)'
        tokens, to_map = x.flatten(2).mT, 'x.unflatten(1, (height, width)).permute(0, 3, 1, 2)'
    else:
        turned, turn = x.permute(0, 3, 1, 2), 'x.permute(0, 2, 3, 1)'
        tokens, to_map = x.flatten(1, 2), 'x.unflatten(1, (height, width))'
    for bad, hint in [
        (turned, f': take {turn}'),
        (tokens, f': tokens become a map by {to_map}'),
        (x.narrow(2, 0, 0), ': it is empty, height and width are at least 1'),
        (x.narrow(1 if block.channels_first else 3, 1, block.channels - 1), ''),
        (x[0, 0], ''),
        (x[None], ''),
    ]:
        with pytest.raises(ValueError) as caught:
            module(bad)
        assert str(caught.value) == f'x: expected a map [batch, {", ".join(axes)}], got shape {tuple(bad.shape)}{hint}'
    for advice, bad in ((turn, turned), (to_map, tokens)):
        assert torch.equal(eval(advice, {'x': bad, 'height': height, 'width': width}), x)
