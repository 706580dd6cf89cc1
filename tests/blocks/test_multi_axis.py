"""MaxViT's block against the official weights' arithmetic, as timm has it."""

import copy
from unittest.mock import patch

import pytest
import torch
from check import check_block
from onlookers import assert_near, gradients, over_all_onlookers
from timm.models.maxxvit import MaxxVitBlock, MaxxVitConvCfg, MaxxVitTransformerCfg

from attnzoo.blocks import BlockAttention, GridAttention, MBConv, MultiAxisAttention
from attnzoo.blocks.multi_axis import AttentionLayer
from attnzoo.kernels._measure import peak_bytes


@pytest.mark.parametrize(
    'name, attention', [('maxvit_block_attention', BlockAttention), ('maxvit_grid_attention', GridAttention)]
)
def test_attention_equals_the_golden_module(name, attention):
    assert check_block(name, AttentionLayer(24, attention(24, num_heads=3, window=4)))


@pytest.mark.parametrize('stride, dim_out', [(1, 16), (2, 24)])
def test_convolution_equals_the_golden_module(stride, dim_out):
    assert check_block(f'maxvit_mbconv_s{stride}', MBConv(16, dim_out, stride))


@pytest.mark.parametrize('stride, dim_out, size', [(1, 16, (6, 8)), (2, 24, (12, 16)), (2, 16, (11, 15))])
def test_block_equals_timm(stride, dim_out, size):
    """The whole block under timm's names, in training (batch statistics); gradients of all parameters."""
    torch.manual_seed(0)
    theirs = MaxxVitBlock(
        16,
        dim_out,
        stride,
        conv_cfg=MaxxVitConvCfg(norm_eps=1e-3, act_layer='gelu_tanh', padding='same'),
        transformer_cfg=MaxxVitTransformerCfg(
            dim_head=8,
            head_first=False,
            rel_pos_type='bias_tf',
            window_size=(3, 4),
            norm_eps=1e-5,
            act_layer='gelu_tanh',
        ),
    ).double()
    ours = MultiAxisAttention(16, dim_out, stride, window=(3, 4), head_dim=8, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())

    x = torch.randn(2, *size, 16, dtype=torch.float64)
    expected = theirs(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    out, weight = ours(x), torch.randn_like(expected)
    torch.testing.assert_close(out, expected)
    (expected * weight).sum().backward()
    (out * weight).sum().backward()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad)
    for name, buffer in theirs.named_buffers():
        if name.endswith('running_var'):
            torch.testing.assert_close(ours.get_buffer(name), buffer)


@pytest.mark.parametrize('stride, dim_out', [(1, 8), (2, 12)])
def test_convolution_by_parts_is_the_same(stride, dim_out, small_parts):
    """Image by image; in training the images of a batch are normalised together."""
    torch.manual_seed(0)
    module = MBConv(8, dim_out, stride, dtype=torch.float64)
    x = torch.randn(3, 8, 7, 9, dtype=torch.float64).to(memory_format=torch.channels_last)
    with patch.object(MBConv, 'by_parts', autospec=True, side_effect=MBConv.by_parts) as by_parts:
        module(x)  # moves the statistics
        assert not by_parts.called
        found = gradients(module.eval(), module, (x,))
        assert by_parts.called and module(x).is_contiguous(memory_format=torch.channels_last)
    whole = copy.deepcopy(module)
    whole.by_parts = whole.layers
    for one, other in zip(found, gradients(whole, whole, (x,)), strict=True):
        assert_near(one, other, 1e-12)


@over_all_onlookers
def test_convolution_by_parts_does_the_same_whoever_looks_on(looks_on, small_parts):
    torch.manual_seed(0)
    looks_on(MBConv(8, 12, 2).eval(), torch.randn(3, 8, 6, 9))


def test_convolution_by_parts_takes_less_memory():
    """At the size of a first stage: hidden maps of 51 MB."""
    module, x = MBConv(64, 64).eval(), torch.randn(4, 64, 112, 112).to(memory_format=torch.channels_last)
    with torch.no_grad():
        by_parts = peak_bytes(lambda: module(x), torch.device('cpu'))
        whole = peak_bytes(lambda: module.layers(x), torch.device('cpu'))
    assert by_parts < 0.5 * whole


def test_stochastic_depth_drops_whole_branches():
    torch.manual_seed(0)
    module = MultiAxisAttention(16, window=3, head_dim=8, drop_path=0.999).train()
    x = torch.randn(1, 6, 6, 16)
    torch.testing.assert_close(module(x), x)
    assert not torch.allclose(module.eval()(x), x, atol=1e-2)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(head_dim=7), 'head_dim: expected a divisor of 16 channels, got 7'),
        (dict(head_dim=8, stride=3), 'stride: expected 1 or 2, got 3'),
        (dict(head_dim=8, dim_out=24), 'dim_out: expected the 16 channels of the input where the stride is 1, got 24'),
        (dict(head_dim=8, window=0), 'window: expected a positive number'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiAxisAttention(16, **arguments)
