"""Bi-level routing attention and BiFormer's global attention against the official modules."""

import pytest
import torch
from check import check_block

from attnzoo.blocks import BiLevelRoutingAttention, GlobalAttention
from attnzoo.kernels import route_regions, routed_attention

ROUTED_KEYS = {
    'qkv.qkv.weight': 'qkv.weight',
    'qkv.qkv.bias': 'qkv.bias',
    'wo.weight': 'proj.weight',
    'wo.bias': 'proj.bias',
}


def from_convolutions(state_dict):
    """Keys and 1x1 convolutions of the official channels-first modules -> linear layers."""
    names = {'qkv_linear': 'qkv', 'output_linear': 'proj'}
    renamed = {}
    for key, value in state_dict.items():
        module, parameter = key.split('.')
        is_linear = parameter == 'weight' and module != 'lepe'
        renamed[f'{names.get(module, module)}.{parameter}'] = value.flatten(1) if is_linear else value
    return renamed


def channels_first(module, x):
    return module(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    'name, arguments',
    [
        ('bra_legacy_top1', dict(top_k=1)),
        ('bra_legacy_top4', dict(top_k=4)),
        ('bra_legacy_autopad_top4', dict(top_k=4)),
        ('bra_legacy_soft', dict(top_k=4, soft_routing=True)),
        ('bra_legacy_avgpool', dict(top_k=3, regions=4, kv_pool=2, side_kernel=3)),
    ],
)
def test_routed_attention_equals_the_official_module(name, arguments):
    assert check_block(name, BiLevelRoutingAttention(32, num_heads=4, **arguments), key_map=ROUTED_KEYS)


@pytest.mark.parametrize('top_k', [1, 4])
def test_routed_attention_equals_the_official_channels_first_module(top_k):
    module = BiLevelRoutingAttention(32, num_heads=4, top_k=top_k, padding='projection')
    assert check_block(f'bra_nchw_top{top_k}', module, key_map=from_convolutions, call=channels_first)


def test_global_attention_equals_the_official_module():
    assert check_block('biformer_attention_lepe', GlobalAttention(32))


def test_global_attention_equals_the_official_channels_first_module():
    module = GlobalAttention(32, lepe_on_value=True)
    assert check_block('biformer_nchw_attention_lepe', module, key_map=from_convolutions, call=channels_first)


@pytest.mark.parametrize('padding', ['input', 'projection'])
def test_masked_padding_has_no_influence(padding):
    """With the mask, a map that the regions do not divide gives what attention over its real tokens alone gives."""
    torch.manual_seed(0)
    module = BiLevelRoutingAttention(16, num_heads=2, regions=3, top_k=2, padding=padding, mask_padding=True).double()
    x = torch.randn(2, 7, 8, 16, dtype=torch.float64)
    q, k, v = module.qkv(x).split(16, dim=-1)
    # The same attention with rubbish in the padding, which the mask must hide.
    size = (9, 9) if padding == 'input' else (8, 8)
    grid = (3, 3) if padding == 'input' else (4, 4)

    def with_rubbish(t):
        full = torch.randn(2, *size, 16, dtype=torch.float64) * 100
        full[:, :7, :8] = t
        return full

    q, k, rubbish_v = with_rubbish(q), with_rubbish(k), with_rubbish(v)
    routes, _ = route_regions(q, k, regions=grid, top_k=2, valid=(7, 8))
    out = routed_attention(q, k, rubbish_v, routes, num_heads=2, regions=grid, scale=16**-0.5, valid=(7, 8))[:, :7, :8]
    expected = module.proj(out + module.lepe(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    torch.testing.assert_close(module(x), expected, rtol=1e-10, atol=1e-12)


def test_regions_that_divide_need_no_padding():
    """Both arithmetics, masked or not, are one function on maps that the regions divide."""
    torch.manual_seed(0)
    first = BiLevelRoutingAttention(16, num_heads=2, regions=3, top_k=2)
    x = torch.randn(1, 6, 9, 16)
    for arguments in (dict(padding='projection'), dict(mask_padding=True)):
        other = BiLevelRoutingAttention(16, num_heads=2, regions=3, top_k=2, **arguments)
        other.load_state_dict(first.state_dict())
        torch.testing.assert_close(other(x), first(x))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(num_heads=3), 'num_heads: expected a divisor of 16'),
        (dict(num_heads=2, top_k=0), 'top_k and regions: expected at least 1'),
        (dict(num_heads=2, padding='output'), "padding: expected 'input' or 'projection', got 'output'"),
        (dict(num_heads=2, kv_pool=2, mask_padding=True), 'mask_padding: not defined for pooled keys'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        BiLevelRoutingAttention(16, **arguments)
