"""Window attention against the official modules of Swin and DaViT, and timm's."""

import pytest
import torch
from check import check_block
from timm.layers import Mlp
from timm.models.swin_transformer import SwinTransformerBlock
from torch import nn

from attnzoo.blocks import WindowAttention


def test_equals_the_official_module():
    module = WindowAttention(24, num_heads=3, window=4)
    windows = lambda module, x: module(x.view(6, 4, 4, 24)).flatten(1, 2)  # noqa: E731
    assert check_block('swin_window_attention', module, call=windows)


@pytest.mark.parametrize('shift', [0, 2])
def test_equals_the_official_swin_block(shift, transformer_block):
    attention = WindowAttention(24, num_heads=3, window=4, shift=shift)
    assert check_block(f'swin_block_shift{shift}', transformer_block(24, attention, (8, 12)))


class PositionConvolution(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x):
        return x + self.proj(x)


class SpatialBlock(nn.Module):
    """DaViT's, around our attention."""

    def __init__(self, dim, attn):
        super().__init__()
        self.cpe = nn.ModuleList([PositionConvolution(dim), PositionConvolution(dim)])
        self.norm1, self.attn = nn.LayerNorm(dim), attn
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim, 4 * dim)

    def forward(self, x):
        x = self.cpe[0](x).permute(0, 2, 3, 1)
        x = x + self.attn(self.norm1(x))
        x = self.cpe[1](x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return (x + self.mlp(self.norm2(x))).permute(0, 3, 1, 2)


def test_equals_the_official_davit_block():
    """Without a position bias; the second run is a map that the windows do not divide."""
    assert check_block(
        'davit_spatial_block', SpatialBlock(24, WindowAttention(24, num_heads=3, window=4, position_bias=False))
    )


@pytest.mark.parametrize('window, shift', [((4, 3), (0, 0)), ((4, 3), (2, 1)), ((8, 12), (0, 0))])
def test_gradients_equal_those_of_timm(window, shift):
    """Under timm's names, with rectangular windows too; gradients of all parameters."""
    torch.manual_seed(0)
    theirs = SwinTransformerBlock(24, (8, 12), num_heads=3, window_size=window, dynamic_mask=False).double()
    theirs.shift_size = shift
    theirs.register_buffer('attn_mask', theirs.get_attn_mask(), persistent=False)
    ours = WindowAttention(24, num_heads=3, window=window, shift=shift, dtype=torch.float64)
    ours.load_state_dict(theirs.attn.state_dict())

    x = torch.randn(2, 8, 12, 24, dtype=torch.float64)
    weight = torch.randn_like(x)
    expected, out = theirs._attn(x), ours(x)
    torch.testing.assert_close(out, expected)
    (expected * weight).sum().backward()
    (out * weight).sum().backward()
    for name, parameter in theirs.attn.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad)


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
@pytest.mark.parametrize('shift', [0, (1, 2)])
def test_masked_padding_has_no_influence(size, shift):
    """Window by window, attention over its real tokens alone."""
    torch.manual_seed(0)
    height, width = size
    module = WindowAttention(16, num_heads=2, window=4, shift=shift, mask_padding=True, dtype=torch.float64)
    nn.init.normal_(module.relative_position_bias_table)
    x = torch.randn(1, height, width, 16, dtype=torch.float64)

    dy, dx = (0, 0) if shift == 0 or min(size) <= 4 else shift
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


def test_a_window_that_spans_the_map_is_not_shifted():
    shifted, plain = (WindowAttention(16, num_heads=2, window=4, shift=shift) for shift in (2, 0))
    plain.load_state_dict(shifted.state_dict())
    for size in [(4, 4), (9, 4), (3, 8)]:
        x = torch.randn(1, *size, 16)
        torch.testing.assert_close(shifted(x), plain(x))
    x = torch.randn(1, 5, 5, 16)
    assert not torch.allclose(shifted(x), plain(x), atol=1e-3)


@pytest.mark.parametrize(
    'arguments',
    [
        dict(shift=(1, 2)),
        dict(shift=1, mask_padding=True),
        dict(position_bias=False, qkv_bias=False),
    ],
)
def test_graphs(arguments, assert_same_in_a_graph):
    module = WindowAttention(16, num_heads=2, window=(3, 4), **arguments)
    assert_same_in_a_graph(module, torch.randn(2, 6, 8, 16), torch.randn(1, 7, 9, 16), torch.randn(1, 2, 5, 16))


def test_meta_device(assert_restored):
    assert_restored(lambda **dd: WindowAttention(16, num_heads=2, window=(3, 4), shift=1, **dd), 2, 7, 9, 16)


def test_dtype_and_no_images():
    module = WindowAttention(16, num_heads=2, window=4, shift=2, dtype=torch.bfloat16)
    assert module(torch.randn(0, 7, 9, 16, dtype=torch.bfloat16)).shape == (0, 7, 9, 16)
    assert module(torch.randn(1, 7, 9, 16, dtype=torch.bfloat16)).dtype == torch.bfloat16


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
