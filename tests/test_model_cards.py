"""Model cards say what the code says."""

import json
import re

import pytest
import timm
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from attnzoo.backbones import official_file, published_top1


def read_cards(root):
    for path in (root / 'model_cards').glob('*.md'):
        yield path, yaml.safe_load(path.read_text().split('---')[1])


def test_every_card_has_its_facts(root):
    cards = list(read_cards(root))
    assert cards
    for path, facts in cards:
        assert {'family', 'paper', 'code', 'licence', 'input', 'models'} <= facts.keys(), path


def test_every_model_is_on_one_card(root, our_models):
    listed = [entry['name'] for _, facts in read_cards(root) for entry in facts['models']]
    assert sorted(listed) == our_models


def test_numbers_are_those_of_the_models(root):
    for _, facts in read_cards(root):
        for entry in facts['models']:
            model = timm.create_model(entry['name'], device='meta')
            assert entry['parameters'] == sum(p.numel() for p in model.parameters())
            counter = FlopCounterMode(display=False)
            with counter, torch.no_grad():
                model(torch.empty(1, *model.default_cfg['input_size'], device='meta'))
            assert entry['gmacs'] == pytest.approx(counter.get_total_flops() / 2e9, abs=1e-4), entry['name']
            cfg = model.pretrained_cfg
            for fact, key in (('licence', 'license'), ('code', 'origin_url')):  # some families have several authors
                assert entry.get(fact, facts[fact]) == cfg[key], entry['name']
            name = f'{entry["name"]}.{cfg.get("tag")}'
            assert entry['published_top1'] == published_top1(name)
            file = official_file(name)
            assert entry['weights'] == (file.name if file else cfg.get('hf_hub_id'))


def test_speed_is_that_of_the_benchmark(root):
    """As `benchmarks/images_per_second.py --cards` writes it: a fact for each model, and a cell of the table."""
    measured = json.loads((root / 'benchmarks/results/cpu_images_per_second.json').read_text())['images_per_second']
    for path, facts in read_cards(root):
        for entry in facts['models']:
            figure = measured[entry['name']]
            assert entry['cpu_images_per_second'] == figure > 0
            assert re.search(rf'^\| `{entry["name"]}`.*\| {figure} \|$', path.read_text(), re.MULTILINE)
