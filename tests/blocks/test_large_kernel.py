"""Large kernel attention against the official modules of VAN."""

import pytest
from official_block import assert_equals_the_official_block

from attnzoo.blocks import LargeKernelAttention, VanAttention


@pytest.mark.parametrize('name, kind', [('van_lka', LargeKernelAttention), ('van_attention', VanAttention)])
def test_equals_the_official_module(name, kind):
    assert_equals_the_official_block(
        name,
        make=lambda _: kind(24),
        rename=lambda key: key,
        call=lambda _: lambda module, x: module(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    )


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(kernel=4), 'kernel: expected an odd number, got 4'),
        (dict(dilated_kernel=0), 'dilated_kernel: expected an odd number, got 0'),
        (dict(dilation=0), 'dilation: expected at least 1, got 0'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        LargeKernelAttention(16, **arguments)
