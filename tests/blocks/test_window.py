"""Window attention against the official modules of Swin, and timm's."""

import pytest
import torch
from check import check_block
from timm.models.swin_transformer import SwinTransformerBlock
from torch import nn
from torchvision.models.swin_transformer import ShiftedWindowAttention

from attnzoo.blocks import WindowAttention


def test_equals_the_official_module():
    module = WindowAttention(24, num_heads=3, window=4)
    windows = lambda module, x: module(x.view(6, 4, 4, 24)).flatten(1, 2)  # noqa: E731
    assert check_block('swin_window_attention', module, call=windows)


@pytest.mark.parametrize('shift', [0, 2])
def test_equals_the_official_swin_block(shift, transformer_block):
    attention = WindowAttention(24, num_heads=3, window=4, shift=shift)
    assert check_block(f'swin_block_shift{shift}', transformer_block(24, attention, (8, 12)))


@pytest.mark.parametrize('window, shift', [((4, 3), (0, 0)), ((4, 3), (2, 1)), ((8, 12), (0, 0))])
def test_gradients_equal_those_of_timm(window, shift):
    """Under timm's names, with rectangular windows too; gradients of all parameters."""
    torch.manual_seed(0)
    theirs = SwinTransformerBlock(24, (8, 12), num_heads=3, window_size=window, dynamic_mask=False).double()
    theirs.shift_size = shift
    theirs.register_buffer('attn_mask', theirs.get_attn_mask(), persistent=False)
    ours = WindowAttention(24, num_heads=3, window=window, shift=shift, dtype=torch.float64)
    ours.load_state_dict(theirs.attn.state_dict())

    assert_same_results(ours, theirs._attn, theirs.attn, torch.randn(2, 8, 12, 24, dtype=torch.float64))


@pytest.mark.parametrize('size', [(9, 10), (3, 10), (2, 3), (9, 4)])
@pytest.mark.parametrize('qkv_bias', [True, False])
def test_padding_takes_part_as_zeros_behind_the_norm(size, qkv_bias):
    """A map that does not divide is what the zero-padded map gives."""
    torch.manual_seed(0)
    module = WindowAttention(16, num_heads=2, window=4, qkv_bias=qkv_bias, dtype=torch.float64)
    x = torch.randn(2, *size, 16, dtype=torch.float64)
    padded = nn.functional.pad(x, (0, 0, 0, -size[1] % 4, 0, -size[0] % 4))
    torch.testing.assert_close(module(x), module(padded)[:, : size[0], : size[1]])


@pytest.mark.parametrize('size', [(9, 10), (3, 10), (2, 3), (9, 4)])
@pytest.mark.parametrize('shift', [(0, 0), (1, 2)])
def test_masked_padding_has_no_influence(size, shift):
    """Window by window, attention over its real tokens alone."""
    torch.manual_seed(0)
    height, width = size
    module = WindowAttention(16, num_heads=2, window=4, shift=shift, mask_padding=True, dtype=torch.float64)
    nn.init.normal_(module.relative_position_bias_table)
    x = torch.randn(1, height, width, 16, dtype=torch.float64)

    dy, dx = (0 if n <= 4 else s for n, s in zip(size, shift, strict=True))
    padded = (height + -height % 4, width + -width % 4)
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    # Where each token is on the shifted map, which window that is, and which side of the seam it comes from.
    row, column = row.flatten(), column.flatten()
    shifted_row, shifted_column = (row - dy) % padded[0], (column - dx) % padded[1]
    place = torch.stack([shifted_row // 4, shifted_column // 4, row < dy, column < dx])
    together = (place[:, :, None] == place[:, None]).all(0)
    offset = (shifted_row[:, None] - shifted_row + 3) * 7 + shifted_column[:, None] - shifted_column + 3
    bias = module.relative_position_bias_table[offset.where(together, 0)].permute(2, 0, 1)
    q, k, v = module.qkv(x).view(height * width, 3, 2, 8).permute(1, 2, 0, 3)
    scores = (q @ k.mT * 8**-0.5 + bias).masked_fill(~together, float('-inf'))
    expected = module.proj((scores.softmax(-1) @ v).transpose(0, 1).flatten(1)).view_as(x)
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize('size, shift', [((4, 3), (0, 0)), ((9, 4), (2, 0)), ((3, 8), (0, 2)), ((5, 5), (2, 2))])
def test_an_axis_that_a_window_spans_is_not_shifted(size, shift):
    asked, given, plain = (WindowAttention(16, num_heads=2, window=4, shift=shift) for shift in (2, shift, 0))
    given.load_state_dict(asked.state_dict())
    plain.load_state_dict(asked.state_dict())
    x = torch.randn(1, *size, 16)
    torch.testing.assert_close(asked(x), given(x))
    assert shift == (0, 0) or not torch.allclose(asked(x), plain(x), atol=1e-3)


@pytest.mark.parametrize('size', [(17, 23), (14, 23), (17, 14)])
def test_padding_after_the_shift_equals_timm(size):
    """On maps that do not divide, with timm's weights; gradients of all parameters."""
    torch.manual_seed(0)
    theirs = SwinTransformerBlock(24, size, num_heads=3, window_size=7, shift_size=3).double()
    ours = WindowAttention(24, num_heads=3, shift=3, pad_after_shift=True, dtype=torch.float64)
    ours.load_state_dict(theirs.attn.state_dict())
    x = torch.randn(2, *size, 24, dtype=torch.float64)
    assert_same_results(ours, theirs._attn, theirs.attn, x)


@pytest.mark.parametrize('size', [(17, 23), (14, 23), (17, 5), (3, 23), (6, 5)])
def test_padding_before_the_shift_equals_torchvision(size):
    """Whose order is that of the official detection code; it leaves an axis that a window spans unshifted, too."""
    torch.manual_seed(0)
    theirs = ShiftedWindowAttention(24, [7, 7], [3, 3], num_heads=3).double()
    ours = WindowAttention(24, num_heads=3, shift=3, dtype=torch.float64)
    ours.load_state_dict({name: x for name, x in theirs.state_dict().items() if name in ours.state_dict()})
    x = torch.randn(2, *size, 24, dtype=torch.float64)
    assert_same_results(ours, theirs, theirs, x)


def test_the_order_of_shift_and_padding_matters():
    before, after = (WindowAttention(24, 3, shift=3, pad_after_shift=choice).double() for choice in (False, True))
    after.load_state_dict(before.state_dict())
    odd, even = torch.randn(1, 17, 23, 24).double(), torch.randn(1, 14, 21, 24).double()
    assert (before(odd) - after(odd)).abs().max() > 1e-3
    torch.testing.assert_close(before(even), after(even))


def assert_same_results(ours, form, theirs, x):
    """Our module, and a form of theirs that has the same parameters: output, and gradients of all parameters."""
    out, expected = ours(x), form(x)
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs.get_parameter(name).grad)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(num_heads=3), 'num_heads: expected a divisor of 16 channels, got 3'),
        (dict(num_heads=0), 'num_heads: expected a divisor of 16 channels, got 0'),
        (dict(window=0), 'window: expected a positive number'),
        (dict(window=(7, 7, 7)), 'window: expected a positive number'),
        (dict(window=7.5), 'window: expected a positive number'),
        (dict(window=(4, 7), shift=4), r'shift: expected 0 to less than the window, \(4, 7\), got 4'),
        (dict(shift=-1), 'shift: expected 0 to less than the window'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        WindowAttention(16, **arguments)
