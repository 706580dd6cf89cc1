"""Blocks under everything that may look on."""

import torch
from onlookers import over_all_onlookers

from attnzoo.blocks import CrossScaleEmbedding


@over_all_onlookers
def test_attention_does_the_same_whoever_looks_on(make_attention, looks_on):
    torch.manual_seed(0)
    looks_on(make_attention().eval(), torch.randn(2, 7, 9, 16))


@over_all_onlookers
def test_cross_scale_embedding_does_the_same_whoever_looks_on(looks_on):
    torch.manual_seed(0)
    looks_on(CrossScaleEmbedding(3, 16).eval(), torch.randn(2, 32, 20, 3))
