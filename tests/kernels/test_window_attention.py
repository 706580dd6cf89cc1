"""Window attention: its definition against an enumeration of the windows, its kernels against its definition."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attnzoo.kernels import why, window_attention
from attnzoo.kernels._launch import Launch, Target, image_span, recording
from attnzoo.kernels._testing import assert_as_exact_as, results
from attnzoo.kernels.window_attention import eager_cpu
from attnzoo.kernels.window_attention.windows import make_partition

HEADS, HEAD_DIM = 2, 8


def make_inputs(
    batch: int = 2,
    size: tuple[int, int] = (8, 12),
    head_dim: int = HEAD_DIM,
    *,
    window: tuple[int, int] = (4, 4),
    form: str = 'packed',
    bias: str | None = None,
    cosine: bool = False,
    filled: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Arguments in float64. `form` is 'packed', 'separate' or 'shared' (one window of queries an image)."""
    generator = torch.Generator().manual_seed(0)

    def new(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    channels, tokens = HEADS * head_dim, window[0] * window[1]
    inputs: dict[str, Any] = {'num_heads': HEADS, 'window': window, **settings}
    if form == 'packed':
        inputs['q'] = new(batch, *size, 3 * channels)
    else:
        inputs['q'] = new(batch, *(size if form == 'separate' else window), channels)
        inputs['k'], inputs['v'] = new(batch, *size, channels), new(batch, *size, channels)
    if bias == 'dense':
        inputs['bias'] = new(HEADS, tokens, tokens)
    if bias == 'table':
        inputs['bias'] = new(2 * tokens, HEADS)
        inputs['bias_index'] = torch.randint(2 * tokens, (tokens, tokens), generator=generator)
    if cosine:
        inputs['cosine_scale'] = new(HEADS).exp()
    if filled:
        inputs['padding'] = new((3 if form == 'packed' else 2) * channels)
    return inputs


CASES = {
    'plain': partial(make_inputs),
    'shifted on an odd map, 49 tokens, 24-channel heads': partial(
        make_inputs, 1, (9, 13), 24, window=(7, 7), bias='dense', shift=(3, 3)
    ),
    'padding with a value': partial(make_inputs, 1, (9, 11), window=(4, 5), bias='table', shift=(2, 1), filled=True),
    'padding after the shift': partial(
        make_inputs, 1, (9, 11), window=(4, 5), bias='table', shift=(2, 1), filled=True, pad_after_shift=True
    ),
    'masked padding after the shift': partial(
        make_inputs, 1, (9, 11), shift=(1, 2), pad_after_shift=True, bias='dense'
    ),
    'dilated, cosine, heads first': partial(
        make_inputs, 1, (9, 13), window=(3, 4), dilation=(2, 3), bias='dense', cosine=True, qkv_layout='h3d'
    ),
    'grid, separate, cosine, padding with a value': partial(
        make_inputs,
        1,
        (9, 13),
        window=(3, 4),
        partition='grid',
        form='separate',
        bias='table',
        cosine=True,
        filled=True,
    ),
    'shared queries': partial(make_inputs, 2, (8, 9), form='shared', bias='dense', filled=True),
    '80 tokens, shifted along one axis': partial(make_inputs, 1, (11, 16), window=(10, 8), bias='dense', shift=(3, 0)),
    '80 tokens, cosine, padding with a value, shared queries': partial(
        make_inputs, 1, (10, 9), window=(10, 8), form='shared', bias='table', cosine=True, filled=True
    ),
}


def enumerated(inputs: dict[str, Any]) -> Tensor:
    """The op by its words: windows listed position by position, softmax written out. Packed as '3hd' only."""
    x, (wh, ww), (sh, sw) = inputs['q'], inputs['window'], inputs.get('shift', (0, 0))
    batch, height, width, channels = x.shape
    channels //= 3
    dh, dw = inputs.get('dilation', (1, 1))
    if inputs.get('partition') == 'grid':
        dh, dw = -(-height // wh), -(-width // ww)
    padded_h, padded_w = -(-height // (wh * dh)) * wh * dh, -(-width // (ww * dw)) * ww * dw
    filled = inputs.get('padding')
    padded = x.new_zeros(batch, padded_h, padded_w, 3 * channels) if filled is None else filled.expand(
        batch, padded_h, padded_w, 3 * channels
    ).clone()  # fmt: skip
    padded[:, :height, :width] = x
    out = x.new_zeros(batch, padded_h, padded_w, channels)
    for image in range(batch):
        for top in range(0, padded_h, wh * dh):
            for left in range(0, padded_w, ww * dw):
                for residue in range(dh * dw):
                    rows = [top + residue // dw + i * dh for i in range(wh)]
                    columns = [left + residue % dw + j * dw for j in range(ww)]
                    # where the tokens of this window of the shifted map lie, and which of them came over the edge
                    tokens = [((r + sh) % padded_h, (c + sw) % padded_w) for r in rows for c in columns]
                    over = [(r + sh >= padded_h, c + sw >= padded_w) for r in rows for c in columns]
                    window = torch.stack([padded[image, r, c] for r, c in tokens])
                    q, k, v = window.view(len(tokens), 3, HEADS, -1).permute(1, 2, 0, 3)
                    if (cosine := inputs.get('cosine_scale')) is not None:
                        norm = torch.linalg.vector_norm
                        q, k = q / norm(q, dim=-1, keepdim=True), k / norm(k, dim=-1, keepdim=True)
                        scores = q @ k.mT * cosine[:, None, None]
                    else:
                        scores = q @ k.mT * inputs.get('scale', q.shape[-1] ** -0.5)
                    if 'bias_index' in inputs:
                        scores = scores + inputs['bias'][inputs['bias_index']].permute(2, 0, 1)
                    elif 'bias' in inputs:
                        scores = scores + inputs['bias']
                    for i in range(len(tokens)):
                        for j, (row, column) in enumerate(tokens):
                            if over[i] != over[j]:
                                scores[:, i, j] -= 100
                            if filled is None and (row >= height or column >= width):
                                scores[:, i, j] = float('-inf')
                    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
                    for (row, column), value in zip(tokens, (weights @ v).transpose(0, 1).flatten(1), strict=True):
                        out[image, row, column] = value
    return out[:, :height, :width]


@pytest.mark.parametrize(
    'inputs',
    [
        pytest.param(make_inputs(2, bias='dense'), id='windows'),
        pytest.param(make_inputs(1, (8, 12), shift=(1, 2), bias='table'), id='shifted'),
        pytest.param(make_inputs(1, (7, 9), window=(3, 4), shift=(1, 0)), id='shifted, masked padding'),
        pytest.param(
            make_inputs(1, (7, 9), window=(3, 4), shift=(2, 3), filled=True, bias='dense'), id='shifted, filled'
        ),
        pytest.param(make_inputs(1, (9, 13), window=(2, 3), dilation=(2, 2), cosine=True), id='dilated'),
        pytest.param(make_inputs(1, (9, 13), window=(3, 4), partition='grid', filled=True), id='grid'),
    ],
)
def test_reference_is_the_enumeration_of_windows(inputs: dict[str, Any]) -> None:
    torch.testing.assert_close(window_attention(**inputs), enumerated(inputs), rtol=1e-10, atol=1e-12)


def test_heads_first_packing_and_separate_maps_are_the_same_attention() -> None:
    inputs = make_inputs(2, (9, 10), filled=True, bias='dense')
    expected = window_attention(**inputs)
    heads_first = inputs | {
        name: inputs[name].unflatten(-1, (3, HEADS, -1)).transpose(-2, -3).flatten(-3) for name in ('q', 'padding')
    }
    torch.testing.assert_close(window_attention(**heads_first, qkv_layout='h3d'), expected)
    q, k, v = inputs['q'].chunk(3, -1)
    separate = inputs | {'q': q, 'k': k, 'v': v, 'padding': inputs['padding'][q.shape[-1] :]}
    torch.testing.assert_close(window_attention(**separate), expected)


def test_shared_queries_are_queries_repeated_in_every_window() -> None:
    inputs = make_inputs(2, (8, 12), form='shared', bias='dense')
    repeated = inputs | {'q': inputs['q'].repeat(1, 2, 3, 1)}
    torch.testing.assert_close(window_attention(**inputs), window_attention(**repeated))


def test_padding_after_the_shift_is_rolling_the_map_first() -> None:
    inputs = make_inputs(1, (6, 7), shift=(1, 2), pad_after_shift=True, filled=True)
    rolled = inputs | {'q': inputs['q'].roll((-1, -2), (1, 2)), 'shift': (0, 0)}
    windows = window_attention(**rolled).roll((1, 2), (1, 2))
    # only windows across the seam differ, so the first one (rolled back to row 1, column 2) is the same
    torch.testing.assert_close(window_attention(**inputs)[:, 1:5, 2:6], windows[:, 1:5, 2:6])


@pytest.mark.parametrize('case', CASES)
def test_reference_has_exact_gradients(case: str) -> None:
    inputs = CASES[case]()
    names = [name for name, x in inputs.items() if isinstance(x, Tensor) and x.is_floating_point()]

    def function(*values: Tensor) -> Tensor:
        return window_attention(**inputs | dict(zip(names, values, strict=True)))

    assert torch.autograd.gradcheck(function, [inputs[name].requires_grad_() for name in names], fast_mode=True)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize('case', CASES)
def test_reference_is_finite_in_every_dtype(case: str, dtype: torch.dtype) -> None:
    inputs = CASES[case]()
    for name, value in results(window_attention, inputs, dtype, 'cpu', torch.ones(_output_shape(inputs))).items():
        assert value.isfinite().all(), name


def _output_shape(inputs: dict[str, Any]) -> tuple[int, ...]:
    keys = inputs.get('k', inputs['q'])
    return *keys.shape[:3], keys.shape[3] // (1 if 'k' in inputs else 3)


class Block(torch.nn.Module):
    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return window_attention(x, num_heads=2, window=(4, 4), shift=(1, 2), bias=bias)


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')  # sizes are constants of a trace
def test_reference_can_be_scripted_traced_compiled_and_exported() -> None:
    inputs = make_inputs(2, (9, 10), bias='dense')
    x, bias = inputs['q'].float(), inputs['bias'].float()
    block, expected = Block(), window_attention(x, num_heads=HEADS, window=(4, 4), shift=(1, 2), bias=bias)
    batch = {0: torch.export.Dim('batch')}
    ways = {
        'script': torch.jit.script(block),
        'trace': torch.jit.trace(block, (x, bias)),
        'compile': torch.compile(block, fullgraph=True),
        'export': torch.export.export(block, (x, bias), dynamic_shapes=(batch, None)).module(),
    }
    for name, way in ways.items():
        torch.testing.assert_close(way(x, bias), expected, msg=lambda text, name=name: f'{name}: {text}')
    assert ways['export'](x[:1], bias).shape[0] == ways['script'](x[:1], bias).shape[0] == 1
    assert window_attention(x.to('meta'), num_heads=HEADS, window=(4, 4)).shape == expected.shape


def test_reference_exports_to_onnx(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip('onnxruntime')
    inputs = make_inputs(2, (9, 10), bias='dense')
    x, bias = inputs['q'].float(), inputs['bias'].float()
    path = tmp_path / 'block.onnx'
    torch.onnx.export(Block(), (x, bias), path, dynamic_shapes=({0: torch.export.Dim('batch')}, None), verbose=False)
    session = onnxruntime.InferenceSession(path)
    names = [given.name for given in session.get_inputs()]
    for images in (x, x[:1]):
        (found,) = session.run(None, dict(zip(names, (images.numpy(), bias.numpy()), strict=True)))
        torch.testing.assert_close(torch.from_numpy(found), Block()(images, bias))


def test_reference_can_be_differentiated_twice_forward_and_by_vmap() -> None:
    inputs = make_inputs(1, (8, 8), 2, bias='dense', shift=(1, 2))
    x, bias = inputs.pop('q').requires_grad_(), inputs.pop('bias').requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda x, bias: window_attention(x, bias=bias, **inputs), (x, bias), fast_mode=True
    )
    call = partial(window_attention, bias=bias.detach(), **inputs)
    _, tangent = torch.func.jvp(call, (x.detach(),), (torch.ones_like(x),))
    _, pullback = torch.func.vjp(call, x.detach())
    torch.testing.assert_close(tangent.sum(), pullback(torch.ones_like(tangent))[0].sum())
    batches = torch.stack([x.detach(), 2 * x.detach()])
    torch.testing.assert_close(torch.vmap(call)(batches)[1], call(batches[1]))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize('case', CASES)
def test_inference_gives_what_training_gives(case: str, dtype: torch.dtype) -> None:
    inputs = {
        name: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in CASES[case]().items()
    }
    trained = window_attention(**inputs | {'q': inputs['q'].clone().requires_grad_()})
    assert trained.requires_grad
    torch.testing.assert_close(window_attention(**inputs), trained.detach())


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('case', CASES)
def test_dropout_drops_weights_and_scales_the_others(
    case: str, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With values of one, an output is the sum of its weights: those left by a half, doubled."""
    monkeypatch.setattr(eager_cpu, 'PART_BYTES', 1)
    inputs = CASES[case]()
    if inputs.get('qkv_layout') == 'h3d':
        inputs['q'] = inputs['q'].unflatten(-1, (HEADS, 3, -1)).clone()
        inputs['q'][..., 2, :] = 1
        inputs['q'] = inputs['q'].flatten(-3)
    elif 'v' in inputs:
        inputs['v'] = torch.ones_like(inputs['v'])
    else:
        inputs['q'][..., inputs['q'].shape[-1] // 3 * 2 :] = 1
    if 'padding' in inputs:
        inputs['padding'][inputs['padding'].numel() * (1 if 'v' in inputs else 2) // (2 if 'v' in inputs else 3) :] = 1
    inputs['q'].requires_grad_(training)
    torch.manual_seed(0)
    draws = torch.cat([window_attention(**inputs, dropout=0.5).detach() for _ in range(60)])
    assert draws.min() < 1 < draws.max() < 2 + 1e-9
    torch.testing.assert_close(draws.mean(), torch.tensor(1.0, dtype=torch.float64), rtol=0.02, atol=0)
    assert not window_attention(**inputs, dropout=1.0).any()


@pytest.mark.parametrize('bias', [None, 'dense'])
def test_inference_with_many_tokens_and_no_mask_is_the_enumeration_too(bias: str | None) -> None:
    """It goes through SDPA, with a bias that has a gradient as well."""
    inputs = make_inputs(2, (10, 16), window=(10, 8), bias=bias, scale=0.5)
    expected = enumerated(inputs)
    inputs = {name: x.requires_grad_() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    with torch.no_grad():
        torch.testing.assert_close(window_attention(**inputs), expected, rtol=1e-10, atol=1e-12)


def test_inference_with_many_tokens_is_fused() -> None:
    """PyTorch fuses a bias of four dimensions, and computes with one of three by products and masks."""
    qkv, bias = torch.randn(2, 14, 14, 96), torch.randn(2, 196, 196)
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        window_attention(qkv, bias=bias, num_heads=2, window=(14, 14))
    names = {event.key for event in profile.key_averages()}
    assert any('flash' in name for name in names) and 'aten::_softmax' not in names, names


def test_empty_batch_gives_an_empty_map_with_gradients() -> None:
    inputs = make_inputs(0, (9, 10), bias='dense')
    found = results(window_attention, inputs, torch.float32, 'cpu', torch.ones(0, 9, 10, HEADS * HEAD_DIM))
    assert found['output'].shape == (0, 9, 10, HEADS * HEAD_DIM)
    assert found['gradient of q'].shape == inputs['q'].shape
    assert not found['gradient of bias'].any()


def test_inference_in_chunks_of_images_changes_nothing() -> None:
    inputs = make_inputs(5, (28, 28), 64, bias='dense', window=(7, 7), shift=(3, 3))  # 2.4 MB an image
    torch.testing.assert_close(window_attention(**inputs), torch.cat([
        window_attention(**inputs | {'q': image[None]}) for image in inputs['q'].clone()
    ]))  # fmt: skip


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'q': torch.zeros(8, 12, 48)}, r'q: expected a map .* got shape \(8, 12, 48\)'),
        ({'q': torch.zeros(2, 8, 12, 48, dtype=torch.int64)}, 'q: expected a floating-point dtype, got torch.int64'),
        ({'k': torch.zeros(2, 8, 12, 48)}, 'v: expected a map, since its counterpart is given, got None'),
        ({'k': torch.zeros(2, 8, 12, 48), 'v': torch.zeros(2, 8, 12, 48).half()}, 'v: .* got torch.float16'),
        ({'k': torch.zeros(2, 8, 11, 48), 'v': torch.zeros(2, 8, 11, 48)}, 'q: expected the shape of k'),
        ({'k': torch.zeros(2, 8, 12, 48), 'v': torch.zeros(2, 8, 12, 24)}, 'v: expected the shape of k'),
        ({'num_heads': 5}, 'num_heads: expected 3 \\* num_heads to divide the 48 channels of a packed q, got 5'),
        ({'window': (4, 13)}, r'window: expected 1 to the size of the map, 8 x 12, got \(4, 13\)'),
        ({'window': (0, 4)}, 'window: expected 1 to the size of the map'),
        ({'partition': 'blocks'}, "partition: expected 'window' or 'grid', got 'blocks'"),
        ({'qkv_layout': 'hd3'}, "qkv_layout: expected '3hd' or 'h3d', got 'hd3'"),
        ({'dilation': (0, 1)}, 'dilation: expected at least 1'),
        ({'dilation': (2, 2), 'partition': 'grid'}, 'dilation: expected .* with a grid'),
        ({'shift': (4, 0)}, r'shift: expected 0 to less than the window, \(4, 4\), got \(4, 0\)'),
        ({'shift': (1, 1), 'dilation': (2, 2)}, 'shift: expected .* with a dilation'),
        ({'bias': torch.zeros(2, 16, 15)}, r'bias: expected .* \(2, 16, 16\), got \(2, 16, 15\)'),
        ({'bias_index': torch.zeros(16, 16, dtype=torch.int64)}, 'bias: expected with a bias_index a table'),
        ({'bias': torch.zeros(9, 2), 'bias_index': torch.zeros(16, 16)}, 'bias_index: expected int64 or int32'),
        ({'cosine_scale': torch.ones(3)}, r'cosine_scale: expected \[num_heads = 2\]'),
        ({'cosine_scale': torch.ones(2), 'scale': 1.0}, 'scale: expected None with a cosine_scale'),
        ({'dropout': 1.5}, 'dropout: expected a rate from 0 to 1, got 1.5'),
        ({'padding': torch.zeros(47)}, r'padding: expected \[3C\] = \(48,\)'),
        ({'bias': torch.zeros(2, 16, 16, device='meta')}, 'bias: expected the device of q, cpu, got meta'),
        ({'backend': 'cuda'}, "backend: expected one of 'auto', 'triton', 'torch', got 'cuda'"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], message: str) -> None:
    arguments = {'q': torch.zeros(2, 8, 12, 48), 'num_heads': 2, 'window': (4, 4)} | changes
    with pytest.raises(ValueError, match=message) as caught:
        window_attention(**arguments)
    assert '\n' not in str(caught.value)


def test_the_kernel_is_refused_where_it_cannot_run_and_why_says_so() -> None:
    x = torch.zeros(1, 4, 4, 24)
    window_attention(x, num_heads=1, window=(4, 4), backend='torch')
    assert why('window_attention') == 'window_attention: torch, because it was asked for'
    window_attention(x, num_heads=1, window=(4, 4))
    assert why() == "window_attention: torch, because the tensors are on the device 'cpu'"
    with pytest.raises(
        ValueError, match="backend: expected 'auto' or 'torch' for window_attention here, got 'triton': "
    ):
        window_attention(x.double(), num_heads=1, window=(4, 4), backend='triton')


def test_a_kernel_is_a_module_that_can_be_imported_by_its_name() -> None:
    pytest.importorskip('triton')
    program = 'import attnzoo.kernels.window_attention.kernel as kernel; kernel.forward'
    subprocess.run([sys.executable, '-c', program], check=True)


def on_paper(inputs: dict[str, Any], d_out: Tensor | None = None) -> list[Launch]:
    """The launches of a call, and of its backward pass."""
    pytest.importorskip('triton')
    with recording(Target('cuda', 90, 132)) as launches:
        out = window_attention(**inputs, backend='triton')
        leaves = [x for x in inputs.values() if isinstance(x, Tensor) and x.requires_grad]
        torch.autograd.grad(out, leaves, torch.empty_like(out) if d_out is None else d_out, allow_unused=True)
    return launches


def test_padding_of_a_map_that_divides_is_none() -> None:
    """Blocks pass it on every map."""
    x = torch.empty(1, 8, 12, 48, device='meta', requires_grad=True)
    inputs = {'q': x, 'num_heads': HEADS, 'window': (4, 4), 'shift': (1, 2)}
    padding = torch.empty(48, device='meta', requires_grad=True)
    with_padding, without = on_paper(inputs | {'padding': padding}), on_paper(inputs)
    for one, other in zip(with_padding, without, strict=True):
        assert one.kernel is other.kernel
        padded = [name for name, value in one.arguments.items() if 'padding' in name and isinstance(value, Tensor)]
        assert not padded, padded


def swin(size: tuple[int, int], stage: int, shifted: bool, device: str) -> dict[str, Any]:
    """What the blocks of Swin-T call."""
    channels = 96 * 2**stage
    height, width = (-(-side // (4 * 2**stage)) for side in size)
    index = torch.empty(49, 49, dtype=torch.int64, device=device).fill_(0)
    table, padding, x = (
        torch.empty(shape, device=device, requires_grad=True)
        for shape in ((169, 3 * 2**stage), (3 * channels,), (2, height, width, 3 * channels))
    )
    tensors = {'q': x, 'bias': table, 'bias_index': index, 'padding': padding}
    return tensors | {'num_heads': 3 * 2**stage, 'window': (7, 7), 'shift': (3, 3) if shifted else (0, 0)}


def test_one_binary_serves_maps_of_all_sizes() -> None:
    pytest.importorskip('triton')
    from attnzoo.kernels.aot import _source

    binaries = {
        repr(_source(launch)._replace(parameters=[]))  # their values are no part of a binary
        for height in range(480, 801, 64)
        for width in range(480, 1345, 96)
        for stage in range(4)
        for shifted in (False, True)
        for launch in on_paper(swin((height, width), stage, shifted, 'meta'))
    }
    assert len(binaries) <= 24


def test_nothing_but_kernels_runs() -> None:
    """A block of Swin launches ours alone, once the index of its table has been looked at."""
    allowed = {'aten::empty', 'aten::new_empty', 'aten::empty_like', 'aten::empty_strided'}
    for shifted in (False, True):
        inputs = swin((224, 224), 0, shifted, 'cpu')
        on_paper(inputs)
        d_out = torch.ones(2, 56, 56, 96)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            launches = on_paper(inputs, d_out)
        views = {'aten::view', 'aten::unflatten', 'aten::unbind', 'aten::select', 'aten::as_strided', 'aten::detach'}
        run = {event.key for event in profile.key_averages() if event.key.startswith('aten::')} - allowed - views
        assert not run, run
        assert len(launches) == 4


def test_inference_makes_a_table_once_for_a_bias_that_stays() -> None:
    pytest.importorskip('triton')
    inputs = swin((224, 224), 0, True, 'cpu')

    def launched(gradients: bool = False) -> int:
        with torch.set_grad_enabled(gradients), recording(Target('cuda', 90, 132)) as launches:
            window_attention(**inputs, backend='triton')
        return len(launches)

    assert [launched(), launched(), launched(gradients=True)] == [2, 1, 2]
    with torch.no_grad():
        inputs['bias'].add_(1)
    assert [launched(), launched()] == [2, 1]
    inputs['bias'] = inputs['bias'].double()
    assert launched() == 2
    inputs['bias_index'] = inputs['bias_index'].clone()
    assert launched() == 2
    inputs['shift'] = (1, 1)
    assert [launched(), launched()] == [2, 1]


def test_no_map_may_span_more_than_32_bits_count() -> None:
    """A slice of an enormous map is refused, whichever it is, and a gradient of that kind is copied."""
    contiguous, huge = (
        torch.empty_strided((1, 8, 8, 16), (0, row, 16, 1), device='meta', requires_grad=True) for row in (128, 2**29)
    )
    call = {'num_heads': HEADS, 'window': (4, 4)}
    for name in ('q', 'k', 'v'):
        with pytest.raises(ValueError, match='maps of less than'):
            on_paper(call | {'q': contiguous, 'k': contiguous, 'v': contiguous} | {name: huge})
    launches = on_paper(call | {'q': contiguous, 'k': contiguous, 'v': contiguous}, huge.detach())
    spans = [image_span(x) for one in launches for x in one.arguments.values() if isinstance(x, Tensor) and x.ndim == 5]
    assert spans and max(spans) < 2**31


# Half precision where it matters: the rounding of the products, of the sums over windows, and of larger windows.
KERNEL_CASES = [
    *((case, torch.float32) for case in CASES),
    ('shifted on an odd map, 49 tokens, 24-channel heads', torch.float16),
    ('shifted on an odd map, 49 tokens, 24-channel heads', torch.bfloat16),
    ('grid, separate, cosine, padding with a value', torch.bfloat16),
    ('80 tokens, shifted along one axis', torch.bfloat16),
]


@pytest.mark.kernel
@pytest.mark.parametrize(('case', 'dtype'), KERNEL_CASES, ids=str)
def test_kernel_is_as_exact_as_the_reference(
    case: str, dtype: torch.dtype, kernel_device: torch.device, poisoned: None
) -> None:
    inputs = CASES[case]()
    d_out = torch.randn(_output_shape(inputs), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    reference = partial(window_attention, backend='torch')
    kernel = results(partial(window_attention, backend='triton'), inputs, dtype, kernel_device, d_out)
    assert why('window_attention').startswith('window_attention: triton')
    assert_as_exact_as(
        kernel,
        results(reference, inputs, dtype, kernel_device, d_out),
        results(reference, inputs, torch.float64, 'cpu', d_out),
        dtype,
    )


@pytest.mark.kernel
def test_kernel_reads_maps_of_any_strides(kernel_device: torch.device) -> None:
    inputs = make_inputs(2, (5, 6), window=(2, 3), bias='dense', shift=(1, 1))
    x = inputs['q'].float().to(kernel_device)
    d_out = torch.randn(2, 5, 6, HEADS * HEAD_DIM, device=kernel_device)
    bias = inputs['bias'].float().to(kernel_device)
    forms = {
        'contiguous': (x, d_out),
        'channels first': (x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1), d_out.mT.contiguous().mT),
        'a slice of a larger map': (torch.cat([x, x], 3)[..., : x.shape[3]], d_out[:1, :1].expand_as(d_out)),
    }
    for name, (q, grad) in forms.items():
        found = {}
        for backend in ('torch', 'triton'):
            q = q.detach().requires_grad_()
            out = window_attention(
                q, num_heads=HEADS, window=(2, 3), shift=(1, 1), bias=bias.transpose(1, 2), backend=backend
            )
            found[backend] = out, *torch.autograd.grad(out, q, grad)
        torch.testing.assert_close(found['triton'], found['torch'], msg=lambda text, name=name: f'{name}: {text}')


@pytest.mark.kernel
@pytest.mark.parametrize('window', [(2, 3), (10, 8)], ids=str)
def test_kernel_takes_an_empty_batch(window: tuple[int, int], kernel_device: torch.device) -> None:
    inputs = make_inputs(0, (11, 8), window=window, bias='dense', cosine=True)
    found = results(
        partial(window_attention, backend='triton'), inputs, torch.float32, kernel_device, torch.ones(0, 11, 8, 16)
    )
    assert found['output'].shape == (0, 11, 8, 16)
    assert not found['gradient of bias'].any() and not found['gradient of cosine_scale'].any()


@pytest.mark.kernel
def test_kernel_takes_cosines_with_keys_of_zeros_in_half_precision(kernel_device: torch.device) -> None:
    """SwinV2's keys have no bias: padded ones are zero, and one over their floored length is infinite in float16."""
    inputs = make_inputs(1, (7, 9), window=(4, 5), bias='dense', cosine=True, filled=True)
    inputs['padding'][HEADS * HEAD_DIM : 2 * HEADS * HEAD_DIM] = 0
    d_out = torch.randn(_output_shape(inputs), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kernel, reference, exact = (
        results(partial(window_attention, backend=backend), inputs, dtype, device, d_out)
        for backend, dtype, device in (
            ('triton', torch.float16, kernel_device),
            ('torch', torch.float16, kernel_device),
            ('torch', torch.float64, 'cpu'),
        )
    )
    for found in (kernel, reference, exact):
        del found['gradient of padding']  # of a length of zero
    assert_as_exact_as(kernel, reference, exact, torch.float16)


@pytest.mark.kernel
def test_kernel_follows_a_bias_in_inference(kernel_device: torch.device) -> None:
    inputs = make_inputs(1, (5, 6), window=(2, 3), bias='table', shift=(1, 1))
    inputs = {name: x.to(kernel_device) if isinstance(x, Tensor) else x for name, x in inputs.items()}
    inputs |= {name: inputs[name].float() for name in ('q', 'bias')}
    with torch.no_grad():
        for _ in range(2):
            for _ in range(2):
                found, expected = (window_attention(**inputs, backend=backend) for backend in ('triton', 'torch'))
                torch.testing.assert_close(found, expected)
            inputs['bias'].mul_(-2)


@pytest.mark.kernel
def test_kernel_repeats_bitwise(kernel_device: torch.device) -> None:
    inputs = make_inputs(3, (5, 6), window=(2, 3), bias='table', filled=True)
    d_out = torch.randn(3, 5, 6, HEADS * HEAD_DIM)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (
            results(partial(window_attention, backend='triton'), inputs, torch.float32, kernel_device, d_out)
            for _ in range(2)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.kernel
def test_kernel_can_be_differentiated_twice(kernel_device: torch.device) -> None:
    inputs = make_inputs(1, (4, 5), window=(2, 3), bias='dense', filled=True, form='separate')
    names = ('q', 'k', 'bias', 'padding')  # v without a gradient
    found = {}
    for backend, dtype in (('triton', torch.float32), ('torch', torch.float64)):
        tensors = {
            name: x.detach().to(kernel_device, dtype) if isinstance(x, Tensor) else x for name, x in inputs.items()
        }
        leaves = [tensors[name].requires_grad_() for name in names]
        # k depends on q: what reaches q through k is the caller's to add
        out = window_attention(**tensors | {'k': tensors['k'] + tensors['q']}, shift=(1, 0), backend=backend)
        first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(x.square().sum() for x in first), leaves, retain_graph=True)
        batched = torch.autograd.grad(out, leaves, torch.stack([out, 2 * out]).detach(), is_grads_batched=True)
        found[backend] = [x.double() for x in (*first, *second, *batched)]
    for one, other in zip(found['triton'], found['torch'], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * other.abs().max().item())


@pytest.mark.kernel
def test_kernel_is_refused_what_it_cannot_do(kernel_device: torch.device) -> None:
    x = torch.zeros(1, 4, 4, 24, device=kernel_device)
    call = partial(window_attention, num_heads=1, window=(4, 4), backend='triton')
    with pytest.raises(ValueError, match="got 'triton': its kernel has no dropout"):
        call(x, dropout=0.1)
    call(x, dropout=0.0)
    assert why('window_attention').startswith('window_attention: triton')
    with torch.autograd.forward_ad.dual_level(), pytest.raises(ValueError, match='forward-mode AD see through PyTorch'):
        call(torch.autograd.forward_ad.make_dual(x, x))


@pytest.mark.kernel
def test_kernel_as_an_op_compiles_and_counts(kernel_device: torch.device) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    inputs = make_inputs(1, (5, 6), window=(2, 3), bias='dense', filled=True)
    x, bias, padding = (inputs[name].float().to(kernel_device).requires_grad_() for name in ('q', 'bias', 'padding'))
    call = partial(window_attention, num_heads=HEADS, window=(2, 3), shift=(1, 0), backend='triton')
    cut = make_partition((5, 6), (2, 3), (1, 1), (1, 0), False)
    arguments = (x, None, None, bias, None, None, padding, *cut, HEADS, '3hd', None, 0.0)
    torch.library.opcheck(
        torch.ops.attnzoo.window_attention, (*arguments, True), test_utils=('test_schema', 'test_faketensor')
    )

    eager = call(x, bias=bias, padding=padding)
    compiled = torch.compile(call, fullgraph=True)(x, bias=bias, padding=padding)
    torch.testing.assert_close(compiled, eager)
    d_out = torch.randn_like(eager)
    torch.testing.assert_close(
        torch.autograd.grad(compiled, (x, bias, padding), d_out), torch.autograd.grad(eager, (x, bias, padding), d_out)
    )
    with FlopCounterMode(display=False) as counter:
        call(x, bias=bias, padding=padding).sum().backward()
    padded_tokens, forward = 6 * 6, 4 * 6 * HEADS * HEAD_DIM
    assert counter.get_total_flops() == padded_tokens * forward * 7 // 2
