"""What every block does: any size, layout and precision, and under everything that may look on."""

import pytest
from all_blocks import BLOCKS, INSIDE
from onlookers import over_all_onlookers
from torch import nn

from attnzoo import blocks


def test_every_block_is_in_the_list():
    classes = {name for name in blocks.__all__ if isinstance(getattr(blocks, name), type)}
    assert {name.partition(',')[0] for name in BLOCKS} | INSIDE.keys() == classes
    for name, block in BLOCKS.items():
        assert type(block.new(device='meta')) is getattr(blocks, name.partition(',')[0]), name
    for name, block in INSIDE.items():
        assert any(type(part) is getattr(blocks, name) for part in BLOCKS[block].new().modules())
    assert all(issubclass(getattr(blocks, name), nn.Module) for name in classes)


@pytest.mark.parametrize('name', BLOCKS)
@over_all_onlookers
def test_does_the_same_whoever_looks_on(name, looks_on):
    looks_on(BLOCKS[name].new(), BLOCKS[name].map())
