"""CBAM against golden data of the authors' module."""

import pytest
import torch
from official_block import assert_equals_the_official_block
from torch import nn

from attnzoo.blocks import CBAM


@pytest.mark.parametrize(
    'name, arguments',
    [
        ('cbam', dict()),
        ('cbam_nospatial', dict(no_spatial=True)),
        ('cbam_r4_lse_lp', dict(reduction_ratio=4, pool_types=('avg', 'max', 'lp', 'lse'))),
    ],
)
def test_equals_the_official_block(name, arguments):
    assert_equals_the_official_block(
        name,
        make=lambda _: CBAM(32, **arguments).eval(),
        rename=str,
        call=lambda _: lambda module, x: module.eval()(x),
    )


def test_training_counts_batches_as_a_batch_norm_does():
    torch.manual_seed(0)
    module, x = CBAM(16), torch.randn(4, 16, 5, 6)
    norm = module.SpatialGate.spatial.bn
    gated = CBAM(16, no_spatial=True)
    gated.load_state_dict(module.state_dict(), strict=False)
    other = nn.BatchNorm2d(1, momentum=0.01)
    for momentum in (0.01, 0.3, None):  # None: the mean of all batches
        norm.momentum = other.momentum = momentum
        out = module(x)
        y = gated(x)
        scores = other(module.SpatialGate.spatial.conv(torch.stack([y.amax(1), y.mean(1)], 1)))
        torch.testing.assert_close(out, y * scores.sigmoid())
        for one, expected in zip(norm.buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(one, expected)
    norm.eval()  # frozen alone
    frozen = [buffer.clone() for buffer in norm.buffers()]
    torch.testing.assert_close(
        module(x), y * other.eval()(module.SpatialGate.spatial.conv(torch.stack([y.amax(1), y.mean(1)], 1))).sigmoid()
    )
    assert all(torch.equal(one, expected) for one, expected in zip(norm.buffers(), frozen, strict=True))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(reduction_ratio=32), 'reduction_ratio: expected 1 to 16, so that channels are left of 16, got 32'),
        (dict(reduction_ratio=0), 'reduction_ratio: expected 1 to 16, .*, got 0'),
        (dict(kernel_size=4), 'kernel_size: expected an odd number, got 4'),
        (dict(pool_types=('avg', 'sum')), r"pool_types: expected some of 'avg', .*, got \('avg', 'sum'\)"),
        (dict(pool_types=()), r'pool_types: expected some of .*, got \(\)'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CBAM(16, **arguments)
