"""TransNeXt's blocks against the official modules."""

import pytest
import torch
from official_block import assert_equals_the_official_block
from torch import nn
from torch.nn import functional as F

from attnzoo.blocks import AggregatedAttention, ContinuousPositionBias, ConvolutionalGLU, LengthScaledAttention

SIZES = {'a': (8, 8), 'rect8x12': (8, 12), 'sr4_16x16': (16, 16)}


def rename(key):
    return key.removeprefix('attn.').replace('cpb_fc', 'cpb.fc').replace('dwconv.dwconv', 'dwconv')


def on_tokens(size):
    return lambda module, x: module(x.unflatten(1, size)).flatten(1, 2)


def test_aggregated_attention_equals_the_official_module():
    assert_equals_the_official_block(
        'transnext_aggregated_attention',
        make=lambda run: AggregatedAttention(24, 3, SIZES[run['tag']], pool_ratio=4 if 'sr4' in run['tag'] else 2),
        rename=rename,
        call=lambda run: on_tokens(SIZES[run['tag']]),
    )


def test_length_scaled_attention_equals_the_official_module():
    assert_equals_the_official_block(
        'transnext_global_attention',
        make=lambda _: LengthScaledAttention(24, 3, pretrain_size=7),
        rename=rename,
        call=lambda _: on_tokens((7, 7)),
    )


def test_convolutional_glu_equals_the_official_module():
    assert_equals_the_official_block(
        'transnext_convglu',
        make=lambda _: ConvolutionalGLU(24, hidden=96),
        rename=rename,
        call=lambda _: on_tokens((7, 9)),
    )


@pytest.mark.parametrize('size, ratio', [((4, 6), 1), ((8, 4), 4), ((7, 9), 2), ((5, 11), 4), ((1, 2), 8)])
def test_position_bias_by_its_words(size, ratio):
    """Pair by pair: the means of pooled positions by adaptive pooling, and an MLP on each distance."""
    torch.manual_seed(0)
    pretrain = (7, 5)
    module = ContinuousPositionBias(3, pretrain, ratio, dtype=torch.float64)
    axes = []
    for length, before in zip(size, pretrain, strict=True):
        queries = torch.arange(length, dtype=torch.float64)
        keys = F.adaptive_avg_pool1d(queries[None], max(1, length // ratio))[0]
        distance = (queries[:, None] - keys) / (before - 1) * 8
        axes.append(distance.sign() * (distance.abs() + 1).log() / torch.tensor(8.0).log())
    dy, dx = axes
    bias = torch.stack(torch.broadcast_tensors(dy[:, None, :, None], dx[None, :, None, :]), -1)
    expected = module.fc2(module.fc1(bias).relu()).permute(4, 0, 1, 2, 3).flatten(3).flatten(1, 2)
    found = module(size)
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, [*module.parameters()], grad),
        torch.autograd.grad(expected, [*module.parameters()], grad),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_resized_position_bias():
    """Of one size it is what it is; for others, keys and queries are resized one after the other."""
    torch.manual_seed(0)
    plain = ContinuousPositionBias(2, 8, pool_ratio=4)
    resized = ContinuousPositionBias(2, 8, pool_ratio=4, bias_size=8)
    resized.load_state_dict(plain.state_dict())
    made = plain((8, 8))
    torch.testing.assert_close(resized((8, 8)), made)
    by_key = F.interpolate(made.unflatten(2, (2, 2)), (3, 2), mode='bilinear').flatten(2)
    expected = F.interpolate(by_key.transpose(1, 2).unflatten(2, (8, 8)), (12, 9), mode='bilinear').flatten(2)
    torch.testing.assert_close(resized((12, 9)), expected.transpose(1, 2))


def test_position_bias_keeps_its_table_for_inference():
    """That of distances, not that of pairs, which is as large as all scores of an image."""
    module = ContinuousPositionBias(2, 8, pool_ratio=4).eval()
    with torch.no_grad():
        first, again = module((8, 8)), module((8, 8))
    assert torch.equal(first, again) and module._kept[1].shape == (16 * 16, 2)
    nn.init.ones_(module.fc2.bias)
    with torch.no_grad():
        assert not torch.allclose(module((8, 8)), first)


def test_dropout_of_the_glu():
    torch.manual_seed(0)
    dropping, plain = ConvolutionalGLU(16, drop=0.3), ConvolutionalGLU(16)
    plain.load_state_dict(dropping.state_dict())
    x = torch.randn(2, 5, 6, 16)
    assert (dropping.train()(x) == 0).double().mean() > 0.2
    torch.testing.assert_close(dropping.eval()(x), plain(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: AggregatedAttention(16, num_heads=3), 'num_heads: expected a divisor of 16 channels, got 3'),
        (lambda: AggregatedAttention(16, window=4), 'window: expected an odd number, got 4'),
        (lambda: AggregatedAttention(16, pool_ratio=0), 'pool_ratio: expected at least 1, got 0'),
        (lambda: AggregatedAttention(16, pretrain_size=0), 'pretrain_size: expected a positive number'),
        (lambda: AggregatedAttention(16, bias_size=(7, 0)), 'bias_size: expected a positive number'),
        (lambda: LengthScaledAttention(16, num_heads=3), 'num_heads: expected a divisor of 16 channels, got 3'),
        (lambda: LengthScaledAttention(16, attn_drop=2), 'attn_drop: expected a rate from 0 to 1, got 2'),
        (lambda: ConvolutionalGLU(16, hidden=1), 'hidden: expected at least 2, got 1'),
        (lambda: ConvolutionalGLU(16)(torch.zeros(1, 4, 5, 8)), r'x: expected a map .* got shape \(1, 4, 5, 8\)'),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
