"""Images of any size, and the maps that detectors and segmenters take: every family."""

import pytest
import timm
import torch
from small_models import SMALL_MODELS, small_model

# What else decides how a map that does not divide is cut.
OPTIONS = {
    'biformer_tiny': dict(mask_padding=True),
    'biformer_stl': dict(mask_padding=True),
    'biformer_stl_nchw': dict(mask_padding=True),
    'maxvit_tiny_fused': dict(window_size=(8, 6)),
    'transnext_tiny': dict(interpolate_bias=True),
}
MODELS = [*((name, {}) for name in SMALL_MODELS), *OPTIONS.items()]
# With the widths and depths of a published one; a family's smallest.
PUBLISHED = [
    'biformer_tiny',
    'biformer_stl_nchw',
    'crossformer_tiny',
    'crossformer_pp_small',
    'davit_tiny_fused',
    'maxvit_tiny_fused',
    'transnext_micro',
]


@pytest.mark.parametrize('size', [(32, 32), (33, 47), (64, 224), (96, 96), (160, 160), (192, 256), (225, 191)], ids=str)
@pytest.mark.parametrize('name, options', MODELS, ids=str)
def test_any_input_size(name, options, size):
    model, x = small_model(name, **options), torch.randn(2, 3, *size)
    with torch.no_grad():
        out = model(x)
        assert out.shape == (2, 5) and out.isfinite().all()
        torch.testing.assert_close(model(x[1:]), out[1:], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('features_only', [False, True])
# The others pad, and take even less.
@pytest.mark.parametrize('name', ['biformer_stl', 'biformer_stl_nchw', 'crossformer_tiny', 'crossformer_pp_small'])
def test_a_size_that_is_too_small_says_which_is_not(name, features_only):
    model = timm.create_model(name, **SMALL_MODELS[name], features_only=features_only)
    with pytest.raises(ValueError, match='x: expected a height and width of at least 32, got 40 x 31'):
        model(torch.randn(1, 3, 40, 31))


@pytest.mark.parametrize('name', SMALL_MODELS)
def test_an_image_leaves_no_trace(name):
    """What depends on its size does not stay: the authors' CrossFormer, for one, changes for good with a small one."""
    model, x = small_model(name), torch.randn(1, 3, 256, 224)
    with torch.no_grad():
        expected = model(x)
        model(x[..., :64, :64])
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize('size', [(64, 96), pytest.param((800, 1344), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize('name', PUBLISHED)
def test_features_are_maps_of_the_stated_width_and_stride(name, size):
    model = timm.create_model(name, features_only=True).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, *size))
    channels, strides = model.feature_info.channels(), model.feature_info.reduction()
    assert strides[-4:] == [4, 8, 16, 32]
    assert [tuple(t.shape) for t in maps] == [
        (1, width, size[0] // stride, size[1] // stride) for width, stride in zip(channels, strides, strict=True)
    ]
    assert all(t.isfinite().all() for t in maps)
