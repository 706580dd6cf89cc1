"""What may look on while a module runs: one list for the tests of ops, blocks and models.

Tracers, exporters, modes, transforms and autograd's own tools. A shortcut that is right in plain eager mode (an
autograd.Function, memory used again, a cache) can be wrong or refused under each of them.

An onlooker takes a module in eval mode and its inputs, float32 tensors with the batch first, and asserts that the
module does under it what it does alone. Ops join as a module around a call.
"""

import copy
import io
from collections.abc import Callable, Iterable
from contextlib import nullcontext

import onnxruntime
import pytest
import torch
from timm.layers import get_notrace_functions, get_notrace_modules
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import NodePathTracer

Onlooker = Callable[..., None]
ONLOOKERS: dict[str, Onlooker] = {}


def onlooker(function: Onlooker) -> Onlooker:
    ONLOOKERS[function.__name__] = function
    return function


def over_all_onlookers(test: Callable[..., None]) -> Callable[..., None]:
    """Runs a test once for each onlooker, which it gets as `looks_on`; the process then is as it was."""
    onlookers = [pytest.param(f, id=name) for name, f in ONLOOKERS.items()]
    return without_their_warnings(pytest.mark.parametrize('looks_on', onlookers)(test))


def without_their_warnings(test: Callable[..., None]) -> Callable[..., None]:
    """Lets a test ignore what onlookers warn of."""
    # Sizes are constants of a trace; PyTorch's oldest graphs are deprecated; a mode may fall back to a loop.
    for category in ('torch.jit.TracerWarning', 'DeprecationWarning', 'FutureWarning', 'UserWarning'):
        test = pytest.mark.filterwarnings(f'ignore::{category}')(test)
    return test


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-5, noise: float = 0.0) -> None:
    """Within a fraction of the largest value (`tolerance`), or within `noise`, and of one dtype and shape."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    error, size = (found - expected).abs().max().item(), expected.abs().max().item()
    assert error <= max(tolerance * size, noise), f'off by {error:.2e}, where the largest value is {size:.2e}'


def assert_all_near(found: Iterable[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Each gradient near its own, but those near zero that the size of the others lets pass for rounding."""
    # The bias of keys has such a gradient, for example: the softmax does not see it.
    noise = 0.005 * tolerance * max(x.abs().max().item() for x in expected)
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, tolerance, noise)


def others_like(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Inputs to make a graph with, so that what it takes for constant shows."""
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in inputs)


def weights_like(out: Tensor) -> Tensor:
    """Factors that make a loss of an output, the same for all its images."""
    return torch.linspace(-1, 1, out[0].numel(), dtype=out.dtype).cos().view(out[0].shape)


def gradients(module: Callable[..., Tensor], of: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The output of a form of a module, and the gradients of the inputs and of the module's parameters."""
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    out = module(*inputs)
    loss = (out * weights_like(out)).sum()
    return [out.detach(), *torch.autograd.grad(loss, [*inputs, *of.parameters()])]


def assert_same_gradients(form: Callable[..., Tensor], module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    assert_all_near(gradients(form, module, inputs), gradients(module, module, inputs), 2e-5)


def in_double(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return copy.deepcopy(module).double(), tuple(x.double() for x in inputs)


def to_fx(module: nn.Module) -> torch.fx.GraphModule:
    """As timm's and torchvision's feature extractors trace it."""
    tracer = NodePathTracer(leaf_modules=get_notrace_modules(), autowrap_functions=get_notrace_functions())
    return torch.fx.GraphModule(module, tracer.trace(module))


class SeesAll(TorchDispatchMode):
    """A mode that only looks on."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


# Graphs


@onlooker
def jit_trace(module, *inputs):
    assert_same_gradients(torch.jit.trace(module, others_like(inputs)), module, inputs)


@onlooker
def jit_script(module, *inputs):
    assert_same_gradients(torch.jit.script(module), module, inputs)


@onlooker
def compiled(module, *inputs):
    torch.compiler.reset()
    assert_same_gradients(torch.compile(module, fullgraph=True, backend='aot_eager'), module, inputs)


@onlooker
def exported(module, *inputs):
    graph = torch.export.export(module, others_like(inputs)).module()
    assert_near(graph(*inputs), module(*inputs))


@onlooker
def fx(module, *inputs):
    assert_same_gradients(to_fx(module), module, inputs)


@onlooker
def make_fx_graph(module, *inputs):
    assert_near(make_fx(module)(*others_like(inputs))(*inputs), module(*inputs))


@onlooker
def make_fx_before_dispatch(module, *inputs):
    assert_near(make_fx(module, pre_dispatch=True)(*others_like(inputs))(*inputs), module(*inputs))


def run_onnx(model: bytes, inputs: tuple[Tensor, ...]) -> Tensor:
    session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])
    names = [argument.name for argument in session.get_inputs()]
    (found,) = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
    return torch.from_numpy(found)


@onlooker
def onnx_by_tracing(module, *inputs):
    file = io.BytesIO()
    torch.onnx.export(module, others_like(inputs), file, dynamo=False)
    assert_near(run_onnx(file.getvalue(), inputs), module(*inputs).detach())


@onlooker
def onnx_by_dynamo(module, *inputs):
    program = torch.onnx.export(module, others_like(inputs), dynamo=True, verbose=False)
    model = program.model_proto.SerializeToString()
    assert_near(run_onnx(model, inputs), module(*inputs).detach())


# Modes and tensor subclasses


@onlooker
def dispatch_mode(module, *inputs):
    def watched(*inputs):
        with SeesAll():
            return module(*inputs)

    assert_same_gradients(watched, module, inputs)


@onlooker
def dispatch_mode_in_the_backward(module, *inputs):
    expected = gradients(module, module, inputs)
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    out = module(*inputs)
    with SeesAll():
        found = torch.autograd.grad((out * weights_like(out)).sum(), [*inputs, *module.parameters()])
    assert_all_near(found, expected[1:], 2e-5)


@onlooker
def flop_counter(module, *inputs):
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        module(*inputs)
    with FlopCounterMode(display=False) as both:
        out = module(*[x.detach().requires_grad_() for x in inputs])
        out.sum().backward()
    module.zero_grad()
    assert_near(out, module(*inputs))
    # The backward of a product is two products; routing has none. (PyTorch counts too many for grouped convolutions.)
    assert both.get_total_flops() >= 2.9 * forward.get_total_flops() > 0


@onlooker
def fake_tensors(module, *inputs):
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    expected = module(*inputs)
    for inside in (mode, nullcontext()):  # they are fake outside of their mode, too
        with inside:
            out = module(*[mode.from_tensor(x) for x in inputs])
        assert isinstance(out, FakeTensor) and out.shape == expected.shape and out.dtype == expected.dtype


@onlooker
def autocast(module, *inputs):
    """What ordinary PyTorch does, in training and in inference: no further from it than it is from the exact result."""

    def watched(*inputs):
        with SeesAll():
            return module(*inputs)

    with torch.autocast('cpu', dtype=torch.bfloat16):
        found, expected = gradients(module, module, inputs), gradients(watched, module, inputs)
        with torch.no_grad():
            assert_near(module(*inputs), expected[0], 0.02)
    noise = 0.001 * max(x.abs().max().item() for x in expected)
    for one, other, exact in zip(found, expected, gradients(module, module, inputs), strict=True):
        assert_near(one, other, 0.05, max(noise, (other - exact).abs().max().item()))


# Transforms


@onlooker
def func_grad(module, *inputs):
    parameters = {name: x.detach() for name, x in module.named_parameters()}

    def loss(parameters, *inputs):
        out = functional_call(module, parameters, inputs)
        return (out * weights_like(out)).sum()

    by_name, *of_inputs = grad(loss, argnums=tuple(range(1 + len(inputs))))(parameters, *inputs)
    found = [*of_inputs, *by_name.values()]
    assert_all_near(found, gradients(module, module, inputs)[1:], 2e-5)


@onlooker
def func_gradients_of_samples(module, *inputs):
    """The gradients that each image alone gives, of the parameters or, where there are none, of the inputs."""
    parameters = {name: x.detach() for name, x in module.named_parameters()}

    def loss(parameters, *image):
        out = functional_call(module, parameters, tuple(x[None] for x in image))
        return (out * weights_like(out)).sum()

    argnums = (0, *range(1, 1 + len(inputs)))
    by_name, *of_inputs = vmap(grad(loss, argnums), in_dims=(None, *(0 for _ in inputs)))(parameters, *inputs)
    found = [*of_inputs, *by_name.values()]
    for i in range(inputs[0].shape[0]):
        alone = gradients(module, module, tuple(x[i : i + 1] for x in inputs))[1:]
        alone[: len(inputs)] = [x[0] for x in alone[: len(inputs)]]
        assert_all_near((x[i] for x in found), alone, 2e-5)


@onlooker
def func_vmap(module, *inputs):
    batches = tuple(torch.stack([x, other]) for x, other in zip(inputs, others_like(inputs), strict=True))
    out = vmap(module)(*batches)
    for i in range(2):
        assert_near(out[i], module(*[x[i] for x in batches]))


@onlooker
def func_jvp(module, *inputs):
    """Forward-mode and reverse-mode derivatives agree, by torch.func and by dual numbers."""
    module, inputs = in_double(module, inputs)
    tangents = others_like(inputs)
    out, tangent = jvp(module, inputs, tangents)
    weights = weights_like(out).expand_as(out)
    _, pullback = vjp(module, *inputs)
    expected = sum((x * t).sum() for x, t in zip(pullback(weights), tangents, strict=True))
    assert_near((tangent * weights).sum(), expected, 1e-8)
    with forward_ad.dual_level():
        dual = module(*[forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents, strict=True)])
        assert_near(forward_ad.unpack_dual(dual).tangent, tangent, 1e-8)


@onlooker
def second_derivatives(module, *inputs):
    """By reverse over reverse, and by forward over reverse."""
    module, inputs = in_double(module, inputs)
    directions = others_like(inputs)

    def loss(*inputs):
        out = module(*inputs)
        return (out.square() * weights_like(out)).sum()

    leaves = tuple(x.detach().requires_grad_() for x in inputs)
    first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    found = torch.autograd.grad(first, leaves, directions)
    _, expected = jvp(grad(loss, argnums=tuple(range(len(inputs)))), inputs, directions)
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, 1e-8)


@onlooker
def gradients_in_batches(module, *inputs):
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    out = module(*inputs)
    weights = torch.stack([torch.ones_like(out), weights_like(out).expand_as(out)])
    found = torch.autograd.grad(out, inputs, weights, is_grads_batched=True, retain_graph=True)
    for i in range(2):
        for one, other in zip(found, torch.autograd.grad(out, inputs, weights[i], retain_graph=True), strict=True):
            assert_near(one[i], other)


@onlooker
def func_call(module, *inputs):
    changed = {name: 0.5 * x for name, x in module.named_parameters()}
    other = copy.deepcopy(module)
    other.load_state_dict(changed, strict=False)
    assert_near(functional_call(module, changed, inputs), other(*inputs))


# Autograd's own tools


@onlooker
def checkpoint_with_reentry(module, *inputs):
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    expected = gradients(module, module, inputs)
    out = checkpoint(module, *inputs, use_reentrant=True)
    module.zero_grad()
    (out * weights_like(out)).sum().backward()  # it has no torch.autograd.grad
    found = [out, *(x.grad for x in (*inputs, *module.parameters()))]
    assert_all_near(found, expected, 2e-5)
    module.zero_grad()


@onlooker
def checkpoint_without_reentry(module, *inputs):
    assert_same_gradients(lambda *x: checkpoint(module, *x, use_reentrant=False), module, inputs)


@onlooker
def hooks_on_saved_tensors(module, *inputs):
    """All that the backward needs goes through them, as when it is kept on another device."""
    packed = []

    def pack(x):
        packed.append(x.detach().clone())
        return len(packed) - 1

    def hooked(*inputs):
        with saved_tensors_hooks(pack, lambda i: packed[i]):
            return module(*inputs)

    assert_same_gradients(hooked, module, inputs)
    assert packed


@onlooker
def deepcopied(module, *inputs):
    expected = gradients(module, module, inputs)
    other = copy.deepcopy(module)
    for one, it in zip(gradients(other, other, inputs), expected, strict=True):
        assert torch.equal(one, it)


@onlooker
def inference_mode(module, *inputs):
    """And then training, which must not meet what inference left behind."""
    with torch.inference_mode():
        out = module(*inputs)
    assert_near(out.clone(), module(*inputs))
    assert_near(gradients(module, module, inputs)[0], out.clone())


@onlooker
def anomaly_detection(module, *inputs):
    def detected(*inputs):
        with torch.autograd.detect_anomaly(check_nan=True):
            return module(*inputs)

    assert_same_gradients(detected, module, inputs)
