"""Channel attention against its definition and timm's module."""

import pytest
import torch
from onlookers import assert_near, over_all_onlookers
from timm.models.davit import ChannelAttention
from torch import Tensor, nn

from attnzoo.kernels import channel_attention
from attnzoo.kernels._testing import results
from attnzoo.kernels.channel_attention import reference


def by_definition(qkv: Tensor, num_heads: int, scale: float | None = None) -> Tensor:
    """Channel by channel: each weighs the queries of its group by its scores with their values."""
    channels = qkv.shape[3] // 3
    group = channels // num_heads
    q, k, v = qkv.split(channels, -1)
    out = []
    for channel in range(channels):
        first = channel // group * group
        others = slice(first, first + group)
        scores = (k[..., channel, None] * v[..., others]).sum((1, 2)) * (group**-0.5 if scale is None else scale)
        out.append((scores.softmax(-1)[:, None, None] * q[..., others]).sum(-1))
    return torch.stack(out, -1)


def packed(batch: int = 2, size: tuple[int, int] = (7, 9), channels: int = 12) -> Tensor:
    return torch.randn(batch, *size, 3 * channels, dtype=torch.float64)


@pytest.mark.parametrize('size', [(2, 3), (7, 9)], ids=['plain', 'by hand'])
@pytest.mark.parametrize('num_heads, scale', [(3, None), (1, 0.3), (12, 2.0)])
def test_equals_the_definition(size, num_heads, scale):
    torch.manual_seed(0)
    inputs = dict(qkv=packed(size=size), num_heads=num_heads, scale=scale)
    d_out = torch.randn(2, *size, 12, dtype=torch.float64)
    found, expected = (results(f, inputs, torch.float64, 'cpu', d_out) for f in (channel_attention, by_definition))
    for name, true in expected.items():
        assert_near(found[name], true, 1e-12)


def test_equals_timm():
    torch.manual_seed(0)
    theirs = ChannelAttention(24, num_heads=3).double()
    x = torch.randn(2, 8, 12, 24, dtype=torch.float64)
    ours = theirs.proj(channel_attention(theirs.qkv(x), num_heads=3))
    assert_near(ours.flatten(1, 2), theirs(x.flatten(1, 2)), 1e-12)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_lower_precision_is_as_exact_by_hand_as_in_pytorch(dtype, monkeypatch):
    torch.manual_seed(0)
    qkv, d_out = packed(size=(9, 10)) / 4, torch.randn(2, 9, 10, 12, dtype=torch.float64)
    exact = results(channel_attention, dict(qkv=qkv, num_heads=3), torch.float64, 'cpu', d_out)
    for limit in (0, 10**9):
        monkeypatch.setattr(reference, '_POSITIONS', limit)
        monkeypatch.setattr(reference, '_POSITIONS_HALF', limit)
        for name, found in results(channel_attention, dict(qkv=qkv, num_heads=3), dtype, 'cpu', d_out).items():
            assert found.dtype == dtype
            assert_near(found.double(), exact[name], 16 * torch.finfo(dtype).eps)


def test_any_strides_and_no_images():
    torch.manual_seed(0)
    qkv = packed().float()
    expected = channel_attention(qkv, num_heads=3)
    for strided in (qkv.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1), torch.cat([qkv, qkv], 3)[..., :36]):
        assert_near(channel_attention(strided, num_heads=3), expected)
    empty = qkv[:0].requires_grad_()
    out = channel_attention(empty, num_heads=3)
    out.sum().backward()
    assert out.shape == (0, 7, 9, 12) and empty.grad.shape == empty.shape


class Channels(nn.Module):
    def forward(self, qkv: Tensor) -> Tensor:
        return channel_attention(qkv, 2)


@over_all_onlookers
def test_does_the_same_whoever_looks_on(looks_on):
    torch.manual_seed(0)
    looks_on(Channels(), torch.randn(3, 7, 9, 24) / 3)


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(qkv=torch.zeros(4, 5, 24)), r'qkv: expected a map .* got shape \(4, 5, 24\)'),
        (dict(qkv=torch.zeros(1, 4, 5, 24, dtype=torch.int32)), 'qkv: expected a floating-point dtype'),
        (dict(num_heads=3), r'num_heads: expected 3 \* num_heads to divide the 24 channels of qkv, got 3'),
        (dict(num_heads=0), 'num_heads: .* got 0'),
    ],
)
def test_bad_input_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        channel_attention(**{'qkv': torch.zeros(1, 4, 5, 24), 'num_heads': 2} | changes)
