"""Input that is no such map: each block says so in one line."""

import pytest
import torch

from attnzoo.blocks import CrossScaleEmbedding, MBConv

MAP = r'x: expected a map \[batch, height, width, 16 channels\], got shape '


@pytest.mark.parametrize(
    'shape, message',
    [
        ((2, 49, 16), r'\(2, 49, 16\): tokens become a map by x\.unflatten\(1, \(height, width\)\)$'),
        ((2, 16, 7, 7), r'\(2, 16, 7, 7\): take x\.permute\(0, 2, 3, 1\)$'),
        ((2, 7, 7, 24), r'\(2, 7, 7, 24\)$'),
        ((7, 7), r'\(7, 7\)$'),
        ((1, 2, 7, 7, 16), r'\(1, 2, 7, 7, 16\)$'),
    ],
    ids=str,
)
def test_attention_names_what_it_got_and_what_would_work(make_attention, shape, message):
    with pytest.raises(ValueError, match=MAP + message):
        make_attention()(torch.zeros(shape))


def test_what_the_message_advises_works(make_attention):
    block = make_attention().eval()
    assert block(torch.zeros(2, 49, 16).unflatten(1, (7, 7))).shape[0] == 2
    assert block(torch.zeros(2, 16, 7, 7).permute(0, 2, 3, 1)).shape[0] == 2


def test_the_other_blocks_do_so_too():
    with pytest.raises(ValueError, match=MAP + r'\(2, 16, 32, 32\): take x\.permute\(0, 2, 3, 1\)$'):
        CrossScaleEmbedding(16, 32)(torch.zeros(2, 16, 32, 32))
    message = r'x: expected a map \[batch, 16 channels, height, width\], got shape \(2, 7, 9, 16\): '
    with pytest.raises(ValueError, match=message + r'take x\.permute\(0, 3, 1, 2\)$'):
        MBConv(16, 16)(torch.zeros(2, 7, 9, 16))
