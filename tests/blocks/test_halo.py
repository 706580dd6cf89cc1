"""Halo attention against timm's module and the official data."""

import pytest
import torch
from official_block import assert_equals_the_official_block
from timm.layers.halo_attn import HaloAttn
from torch import Tensor, nn

from attnzoo.blocks import HaloAttention

AS_IT_IS = dict(rename=lambda key: key, call=lambda _: lambda module, x: module(x))


def test_equals_timm_in_the_golden_data():
    assert_equals_the_official_block(
        'halo_timm', make=lambda _: HaloAttention(16, 24, num_heads=3, head_dim=8, block=4, halo=2), **AS_IT_IS
    )
    assert_equals_the_official_block(
        'halo_timm_s2_avgdown',
        make=lambda _: HaloAttention(
            16, 24, stride=2, num_heads=3, head_dim=8, block=4, halo=3, avg_down=True, qkv_bias=True
        ),
        **AS_IT_IS,
    )


class WithProjection(nn.Module):
    """As in lucidrains' halonet-pytorch: halo attention and a 1 x 1 convolution."""

    def __init__(self):
        super().__init__()
        self.attention = HaloAttention(
            16, 24, num_heads=3, head_dim=8, block=4, halo=2, scale_position=True, mask_padding=True
        )
        self.proj = nn.Conv2d(24, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.attention(x))


def test_equals_the_form_with_masked_padding():
    names = {
        'to_q': 'attention.q',
        'to_kv': 'attention.kv',
        'to_out': 'proj',
        'rel_pos_emb.rel_height': 'attention.pos_embed.height_rel',
        'rel_pos_emb.rel_width': 'attention.pos_embed.width_rel',
    }

    def rename(key: str) -> str:
        for theirs, ours in names.items():
            if key.startswith(theirs):
                return ours + key.removeprefix(theirs)
        raise KeyError(key)

    def convert(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Linear layers are 1 x 1 convolutions here, and keys and values of a head stand side by side."""
        kv = state_dict['attention.kv.weight'].unflatten(0, (2, 3, 8)).transpose(0, 1).flatten(0, 2)
        state_dict = state_dict | {'attention.kv.weight': kv}
        return {key: x[..., None, None] if key.endswith('weight') else x for key, x in state_dict.items()}

    assert_equals_the_official_block(
        'halo_lucidrains_maskfixed',
        make=lambda _: WithProjection(),
        rename=rename,
        call=AS_IT_IS['call'],
        convert=convert,
    )


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    'ours, theirs',
    [
        (dict(), dict()),
        (dict(block=6, halo=1, num_heads=3, qk_ratio=0.5), dict(block_size=6, halo_size=1, num_heads=3, qk_ratio=0.5)),
        (dict(stride=2, head_dim=5, qkv_bias=True), dict(stride=2, dim_head=5, qkv_bias=True)),
        (dict(block=3, stride=2, scale_position=True), dict(block_size=3, stride=2, scale_pos_embed=True)),
    ],
    ids=str,
)
def test_equals_timm_with_the_same_weights(ours, theirs, layout):
    torch.manual_seed(0)
    theirs = HaloAttn(16, 24, **theirs).double()
    ours = HaloAttention(16, 24, **ours).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 16, 24, 24, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    out, expected = ours(x), theirs(x)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    assert out.is_contiguous(memory_format=layout)
    d_out = torch.randn_like(out)
    found = torch.autograd.grad(out, [x, *ours.parameters()], d_out)
    for one, true in zip(found, torch.autograd.grad(expected, [x, *theirs.parameters()], d_out), strict=True):
        torch.testing.assert_close(one, true, rtol=0, atol=1e-11)


def test_starts_as_timm_does():
    torch.manual_seed(0)
    theirs, ours = (dict(module.named_parameters()) for module in (HaloAttn(512), HaloAttention(512)))
    for name, x in ours.items():
        assert 0.95 < x.std() / theirs[name].std() < 1.05, name


def test_masked_padding_does_not_matter():
    """A map of one block, then in the corner of a larger map of zeros: only without the mask they differ."""
    torch.manual_seed(0)
    masked, plain = (HaloAttention(16, block=8, halo=2, mask_padding=mask).double() for mask in (True, False))
    plain.load_state_dict(masked.state_dict())
    x = torch.randn(1, 16, 8, 8, dtype=torch.float64)
    larger = nn.functional.pad(x, (0, 8, 0, 8))
    assert not torch.allclose(masked(x), plain(x), atol=1e-3)
    assert not torch.allclose(masked(x), masked(larger)[..., :8, :8], atol=1e-3)
    torch.testing.assert_close(plain(x), plain(larger)[..., :8, :8])


@pytest.mark.parametrize('stride, avg_down', [(1, False), (2, False), (2, True)])
def test_sizes_are_those_of_a_convolution(stride, avg_down):
    module = HaloAttention(16, stride=stride, avg_down=avg_down, block=4, halo=1)
    convolution = nn.Conv2d(16, 16, 3, stride, 1)
    for size in ((8, 8), (7, 9), (1, 2)):
        x = torch.randn(1, 16, *size)
        assert module(x).shape == convolution(x).shape


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(num_heads=3), 'num_heads: expected a divisor of 16 channels, got 3'),
        (dict(stride=3), 'stride: expected 1 or 2, got 3'),
        (dict(block=0), 'block: expected a positive number'),
        (dict(halo=-1), 'halo: expected 0 or more, got -1'),
        (dict(head_dim=0), 'head_dim: expected at least 1, got 0'),
        (dict(dim_out=32, num_heads=16, qk_ratio=0.1), 'qk_ratio: expected one that leaves each of 16 heads a channel'),
    ],
)
def test_bad_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        HaloAttention(16, **{'num_heads': 2} | settings)
