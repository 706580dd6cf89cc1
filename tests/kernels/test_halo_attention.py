"""Halo attention against a definition that goes through the queries one by one."""

import pytest
import torch
from onlookers import SeesAll, assert_near, over_all_onlookers
from torch import Tensor, nn

from attnzoo.kernels import _tiles, halo_attention
from attnzoo.kernels._measure import peak_bytes
from attnzoo.kernels._testing import assert_as_exact_as, results


def by_definition(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    height_rel: Tensor,
    width_rel: Tensor,
    num_heads: int,
    block: tuple[int, int],
    halo: tuple[int, int],
    stride: int = 1,
    scale: float | None = None,
    position_scale: float = 1.0,
    mask_padding: bool = False,
) -> Tensor:
    q = q.unflatten(3, (num_heads, -1))
    head_dim = q.shape[4]
    k = k.unflatten(3, (num_heads, -1))
    k, v = (k[..., :head_dim], k[..., head_dim:]) if v is None else (k, v.unflatten(3, (num_heads, -1)))
    scale = head_dim**-0.5 if scale is None else scale
    (_, height, width), window_h, window_w = k.shape[:3], block[0] + 2 * halo[0], block[1] + 2 * halo[1]
    lines = []
    for y in range(q.shape[1]):
        line = []
        for x in range(q.shape[2]):
            top, left = y * stride // block[0] * block[0] - halo[0], x * stride // block[1] * block[1] - halo[1]
            row, column = y % (block[0] // stride), x % (block[1] // stride)
            query, scores, values = q[:, y, x], [], []
            for u in range(window_h):
                for w in range(window_w):
                    position = height_rel[u - row + window_h - 1] + width_rel[w - column + window_w - 1]
                    score = position_scale * (query * position).sum(-1)
                    if 0 <= top + u < height and 0 <= left + w < width:
                        scores.append(score + scale * (query * k[:, top + u, left + w]).sum(-1))
                        values.append(v[:, top + u, left + w])
                    elif not mask_padding:
                        scores.append(score)
                        values.append(torch.zeros_like(v[:, 0, 0]))
            weights = torch.stack(scores, -1).softmax(-1)
            line.append((weights.unsqueeze(-1) * torch.stack(values, -2)).sum(-2).flatten(1))
        lines.append(torch.stack(line, 1))
    return torch.stack(lines, 1)


def make_inputs(
    size: tuple[int, int],
    block: tuple[int, int],
    halo: tuple[int, int],
    stride: int = 1,
    packed: bool = True,
    **settings,
):
    generator = torch.Generator().manual_seed(0)

    def new(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = {'q': new(2, *(-(-n // stride) for n in size), 6)}
    if packed:
        inputs |= {'k': new(2, *size, 14), 'v': None}  # two heads of 3 + 4 channels
    else:
        inputs |= {'k': new(2, *size, 6), 'v': new(2, *size, 8)}
    tables = (new(2 * (n + 2 * around) - 1, 3) for n, around in zip(block, halo, strict=True))
    inputs |= dict(zip(('height_rel', 'width_rel'), tables, strict=True))
    return inputs | {'num_heads': 2, 'block': block, 'halo': halo, 'stride': stride} | settings


CASES = {
    'whole blocks': dict(size=(6, 4), block=(3, 2), halo=(1, 2)),
    'keys and values apart, of other scales': dict(
        size=(4, 6), block=(2, 3), halo=(1, 1), packed=False, scale=0.3, position_scale=0.7
    ),
    'blocks that are not whole': dict(size=(5, 7), block=(3, 4), halo=(2, 1)),
    'blocks that are not whole, masked': dict(size=(5, 7), block=(3, 4), halo=(2, 1), mask_padding=True),
    'a halo larger than the blocks': dict(size=(5, 4), block=(2, 1), halo=(3, 2), mask_padding=True),
    'a block larger than the map': dict(size=(2, 3), block=(4, 4), halo=(1, 0)),
    'strided': dict(size=(8, 4), block=(4, 2), halo=(1, 1), stride=2),
    'strided, of odd size, masked': dict(
        size=(7, 5), block=(4, 2), halo=(1, 2), stride=2, mask_padding=True, packed=False
    ),
    'all of the map': dict(size=(4, 5), block=(4, 5), halo=(0, 0), packed=False),
}


@pytest.mark.parametrize('form', ['by hand', 'by small parts', 'plain'])
@pytest.mark.parametrize('case', CASES)
def test_equals_the_definition(case, form, monkeypatch):
    inputs = make_inputs(**CASES[case])
    d_out = torch.randn(*inputs['q'].shape[:3], 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = results(by_definition, inputs, torch.float64, 'cpu', d_out)
    if form == 'plain':
        with SeesAll():
            found = results(halo_attention, inputs, torch.float64, 'cpu', d_out)
    else:
        if form == 'by small parts':
            monkeypatch.setattr(_tiles, 'PART_BYTES', 1)
        found = results(halo_attention, inputs, torch.float64, 'cpu', d_out)
    for name, true in expected.items():
        assert_near(found[name], true, 1e-12)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize('mask_padding', [False, True])
def test_lower_precision_is_as_exact_by_hand_as_in_pytorch(mask_padding, dtype):
    inputs = make_inputs((11, 9), (4, 4), (2, 2), mask_padding=mask_padding)
    d_out = torch.randn(2, 11, 9, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = results(halo_attention, inputs, torch.float64, 'cpu', d_out)
    found = results(halo_attention, inputs, dtype, 'cpu', d_out)
    with SeesAll():
        plain = results(halo_attention, inputs, dtype, 'cpu', d_out)
    assert_as_exact_as(found, plain, exact, dtype)


def test_any_strides_and_no_images():
    inputs = {
        name: x.float() if isinstance(x, Tensor) else x for name, x in make_inputs((6, 8), (3, 4), (1, 1)).items()
    }
    expected = halo_attention(**inputs)
    packed = torch.cat([inputs['k'], inputs['q']], -1)
    for x in (packed, packed.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)):
        k, q = x.split([14, 6], 3)
        assert_near(halo_attention(**inputs | {'q': q, 'k': k}), expected)
    leaves = {name: inputs[name].requires_grad_() for name in ('height_rel', 'width_rel')}
    leaves |= {name: inputs[name][:0].requires_grad_() for name in ('q', 'k')}
    out = halo_attention(**inputs | leaves)
    out.sum().backward()
    assert out.shape == (0, 6, 8, 8) and leaves['k'].grad.shape == (0, 6, 8, 14)
    assert not leaves['height_rel'].grad.any()


def test_memory_does_not_grow_with_the_halo():
    """Windows side by side would be 16 times as large as the map, their scores 512 times."""
    q, table = torch.randn(4, 64, 64, 32), torch.randn(31, 32)
    peak = peak_bytes(lambda: halo_attention(q, q, q, table, table, 1, (4, 4), (6, 6)), torch.device('cpu'))
    assert peak < 8 * q.nbytes


class Halo(nn.Module):
    def __init__(self, stride: int, mask_padding: bool):
        super().__init__()
        self.height_rel = nn.Parameter(torch.randn(11, 3) / 3)
        self.width_rel = nn.Parameter(torch.randn(7, 3) / 3)
        self.stride, self.mask_padding = stride, mask_padding

    def forward(self, q: Tensor, kv: Tensor) -> Tensor:
        return halo_attention(
            q, kv, None, self.height_rel, self.width_rel, 2, (4, 2), (1, 1), self.stride, mask_padding=self.mask_padding
        )


@pytest.mark.parametrize('stride, mask_padding', [(1, False), (2, True)])
@over_all_onlookers
def test_does_the_same_whoever_looks_on(stride, mask_padding, looks_on):
    torch.manual_seed(0)
    q = torch.randn(2, 7, 5, 6) if stride == 1 else torch.randn(2, 4, 3, 6)
    looks_on(Halo(stride, mask_padding), q, torch.randn(2, 7, 5, 10))


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(q=torch.zeros(4, 6, 4)), r'q: expected a map \[batch, height, width, channels\], got shape \(4, 6, 4\)'),
        (dict(k=torch.zeros(1, 4, 6, 12, dtype=torch.long)), 'k: expected a floating-point dtype, got torch.int64'),
        (dict(k=torch.zeros(1, 4, 6, 12).half()), 'k: expected the dtype of q, torch.float32, got torch.float16'),
        (dict(q=torch.zeros(1, 4, 5, 4)), r'q: expected \[batch, height / stride, .*\] = \[1, 4, 6, 4\], got shape'),
        (dict(block=(4, 2), stride=2), r'q: expected \[batch, height / stride, .*\] = \[1, 2, 3, 4\], got shape'),
        (dict(block=(3, 2), stride=2), r'block: expected multiples of the stride, 2, at least 1, got \(3, 2\)'),
        (dict(block=(0, 2)), r'block: expected multiples of the stride, 1, at least 1, got \(0, 2\)'),
        (dict(halo=(1, -1)), r'halo: expected 0 or more, got \(1, -1\)'),
        (dict(num_heads=3), 'num_heads: expected a divisor of the 4 channels of q, got 3'),
        (
            dict(k=torch.zeros(1, 4, 6, 4)),
            'k: expected without v the keys and values of 2 heads, more than 2 channels each, got 4 channels',
        ),
        (dict(k=torch.zeros(1, 4, 6, 7)), 'k: expected without v .* got 7 channels'),
        (dict(v=torch.zeros(1, 4, 6, 8)), r'k: expected \[batch, .*\] = \[1, 4, 6, 4\], got shape \(1, 4, 6, 12\)'),
        (
            dict(k=torch.zeros(1, 4, 6, 4), v=torch.zeros(1, 4, 5, 8)),
            r'v: expected \[batch, height, width, channels\] = \[1, 4, 6, 8\]',
        ),
        (
            dict(k=torch.zeros(1, 4, 6, 4), v=torch.zeros(1, 4, 6, 5)),
            'num_heads: expected a divisor of the 5 channels of v',
        ),
        (dict(height_rel=torch.zeros(7, 2)), r'height_rel: expected .* = \[9, 2\], got shape \(7, 2\)'),
        (dict(width_rel=torch.zeros(7, 4)), r'width_rel: expected .* = \[7, 2\], got shape \(7, 4\)'),
        (dict(width_rel=torch.zeros(7, 2, device='meta')), 'width_rel: expected the device of q, cpu, got meta'),
    ],
)
def test_bad_input_is_named(changes, message):
    arguments = {
        'q': torch.zeros(1, 4, 6, 4),
        'k': torch.zeros(1, 4, 6, 12),
        'v': None,
        'height_rel': torch.zeros(9, 2),
        'width_rel': torch.zeros(7, 2),
        'num_heads': 2,
        'block': (3, 2),
        'halo': (1, 1),
    }
    with pytest.raises(ValueError, match=message):
        halo_attention(**arguments | changes)
