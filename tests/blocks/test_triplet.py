"""Triplet attention against golden data of both of the authors' modules."""

import pytest
import torch
from official_block import assert_equals_the_official_block

from attnzoo.backbones.resnet import checkpoint_filter_fn
from attnzoo.blocks import TripletAttention


@pytest.mark.parametrize('name, no_spatial', [('triplet_attention', False), ('triplet_attention_nospatial', True)])
def test_equals_the_official_block(name, no_spatial):
    assert_equals_the_official_block(
        name,
        make=lambda _: TripletAttention(16, no_spatial),
        rename=str,
        call=lambda _: lambda module, x: module.eval()(x),
    )


def test_equals_the_module_of_the_official_models():
    """Its parameters have other names, which the filter of our ResNets knows."""

    def rename(key):
        (renamed,) = checkpoint_filter_fn({f'layer1.0.triplet_attention.{key}': None}, None)
        return renamed.removeprefix('layer1.0.se.')

    assert_equals_the_official_block(
        'triplet_attention_imagenet_keys',
        make=lambda _: TripletAttention(16),
        rename=rename,
        call=lambda _: lambda module, x: module.eval()(x),
    )


def test_training_counts_batches():
    torch.manual_seed(0)
    module = TripletAttention(16)
    module(torch.randn(2, 16, 5, 6))
    counts = [buffer.item() for name, buffer in module.named_buffers() if name.endswith('num_batches_tracked')]
    assert counts == [1, 1, 1]
    means = [buffer for name, buffer in module.named_buffers() if name.endswith('running_mean')]
    assert all(mean.any() for mean in means)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match='kernel_size: expected an odd number, got 6'):
        TripletAttention(16, kernel_size=6)
