"""Graphs that others make of our models: torchvision's feature extractor, torch.export for any size, DDP."""

import subprocess
import sys

import onnxruntime
import pytest
import torch
from small_models import SMALL_MODELS, small_model
from torch.export import Dim
from torch.fx.proxy import GraphAppendingTracer
from torchvision.models.feature_extraction import create_feature_extractor

from attnzoo import kernels

# The least height and width of a graph with dynamic ones. The other models export with a dynamic batch, but their
# windows or regions depend on the size.
LEAST_SIZE = {'biformer_tiny': 128, 'biformer_stl': 128}


@pytest.mark.parametrize('name', [name for name in kernels.__all__ if name != 'why'])
def test_fx_leaves_ops_whole(name):
    function = getattr(kernels, name)
    graph = torch.fx.Graph()
    x = torch.fx.Proxy(graph.placeholder('x'), GraphAppendingTracer(graph))
    for call in (lambda: function(x), lambda: function(q=x), lambda: function(torch.ones(2), size=(x, 3))):
        assert call().node.target is function


@pytest.mark.parametrize('gradients', [True, False])
@pytest.mark.parametrize('name', SMALL_MODELS)
def test_torchvision_extracts_features(name, gradients):
    model = small_model(name)
    with torch.set_grad_enabled(gradients):
        extractor = create_feature_extractor(model, ['stages.0', 'stages.1', 'stages.2', 'stages.3', 'head'])
        for size in ((64, 96), (97, 65)):
            x = torch.randn(2, 3, *size)
            logits, maps = model(x), model.forward_intermediates(x, indices=4, intermediates_only=True)
            found = extractor(x)
            torch.testing.assert_close(found['head'], logits)
            for i, expected in enumerate(maps):
                torch.testing.assert_close(found[f'stages.{i}'], expected)


@pytest.mark.parametrize('name', ['biformer_tiny', pytest.param('biformer_stl', marks=pytest.mark.slow)])
def test_exports_for_any_size(name):
    model, least = small_model(name), LEAST_SIZE[name]
    dynamic = {0: Dim('batch', min=1, max=64), 2: Dim('height', min=least), 3: Dim('width', min=least)}
    exported = torch.export.export(model, (torch.randn(2, 3, 224, 256),), dynamic_shapes=(dynamic,)).module()
    for size in ((least, least), (224, 224), (least + 33, 341), (513, least + 1)):
        for batch in (1, 3):
            x = torch.randn(batch, 3, *size)
            torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)


def first_in_make_test(models):
    """Of dear tests, `make test` runs the first model; `make test-all` all of them."""
    first, *others = models
    return [first, *(pytest.param(name, marks=pytest.mark.slow) for name in others)]


@pytest.mark.parametrize('name', SMALL_MODELS)
def test_one_graph_serves_every_batch_size(name):
    torch.compiler.reset()
    model = small_model(name)
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    with torch.no_grad():
        for batch in (2, 3):  # two sizes show that it changes
            compiled(torch.randn(batch, 3, 64, 96))
        with torch._dynamo.config.patch(error_on_recompile=True):
            for batch in (4, 5, 9):
                x = torch.randn(batch, 3, 64, 96)
                torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', first_in_make_test(SMALL_MODELS))
def test_compiles_at_one_size_after_another(name):
    torch.compiler.reset()
    model = small_model(name)
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    weight = next(p for p in model.parameters() if p.ndim == 4)
    for size in ((64, 64), (57, 93)):
        x = torch.randn(2, 3, *size)
        expected, out = model(x), compiled(x)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        mine, true = (torch.autograd.grad(y.square().sum(), weight) for y in (out, expected))
        torch.testing.assert_close(mine, true, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('name', SMALL_MODELS)
def test_compiles_with_inductor(name):
    torch.compiler.reset()
    model, x = small_model(name), torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning', 'ignore::DeprecationWarning')
@pytest.mark.parametrize('name', first_in_make_test(SMALL_MODELS))
def test_exports_with_a_dynamic_batch(name, tmp_path):
    model, x = small_model(name), torch.randn(2, 3, 64, 96)
    batch = dict(dynamic_shapes=({0: Dim('batch', min=1, max=64)},))
    exported = torch.export.export(model, (x,), **batch).module()
    torch.onnx.export(model, (x,), dynamo=True, verbose=False, **batch).save(tmp_path / 'model.onnx')
    axes = dict(input_names=['x'], output_names=['logits'], dynamic_axes=dict(x={0: 'batch'}, logits={0: 'batch'}))
    torch.onnx.export(model, (x,), tmp_path / 'older.onnx', dynamo=False, **axes)
    sessions = [onnxruntime.InferenceSession(tmp_path / file) for file in ('model.onnx', 'older.onnx')]
    for images in (x, x[:1], torch.cat((x, x, x))):
        expected = model(images)
        torch.testing.assert_close(exported(images), expected, rtol=1e-4, atol=1e-5)
        for session in sessions:
            (out,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
            torch.testing.assert_close(torch.from_numpy(out), expected, rtol=1e-4, atol=1e-5)


TRAINING_STEP = """
import torch
from small_models import SMALL_MODELS, small_model
from torch.nn.parallel import DistributedDataParallel

torch.distributed.init_process_group('gloo')
for name in SMALL_MODELS:
    model = small_model(name).train()
    DistributedDataParallel(model)(torch.randn(2, 3, 64, 64)).square().mean().backward()
    for parameter, value in model.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all(), (name, parameter)
torch.distributed.destroy_process_group()
"""


def test_ddp_has_nothing_to_say(tmp_path, root):
    """Gradients have the strides of their parameters: where they do not, DDP copies them and warns."""
    script = tmp_path / 'step.py'
    script.write_text(f'import sys\nsys.path.insert(0, {str(root / "tests/shared")!r})\n' + TRAINING_STEP)
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    done = subprocess.run([*launcher, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'UserWarning' not in done.stderr, done.stderr
