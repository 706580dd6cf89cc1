"""The page of blocks says what is so: its snippets run, its costs are counted, and what it names exists."""

import ast
import contextlib
import importlib
import inspect
import io
import re
from pathlib import Path

import pytest
import torch
from all_blocks import BLOCKS, INSIDE
from onlookers import to_fx
from torch.utils.flop_counter import FlopCounterMode

from attnzoo import blocks, kernels
from attnzoo.kernels._registry import OPS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / 'docs' / 'blocks.md').read_text()
SECTIONS = dict(re.findall(r'^## (\w+)\n(.*?)(?=^##? |\Z)', PAGE, re.DOTALL | re.MULTILINE))
CLASSES = [name for name in blocks.__all__ if isinstance(getattr(blocks, name), type)]
PAPER = r'\[(\d{4}\.\d{5})\]\(https://arxiv\.org/abs/\1\)'
over_all_blocks = pytest.mark.parametrize('name', CLASSES)


def field(name: str, title: str) -> str:
    """What the section of a block says behind a bold word."""
    (text,) = re.findall(rf'^\*\*{title}\.\*\* (.*?)\n\n', SECTIONS[name], re.DOTALL | re.MULTILINE)
    return text


def snippet(name: str) -> str:
    (code,) = re.findall(r'```python\n(.*?)```', SECTIONS[name], re.DOTALL)
    return code


def run(code: str) -> tuple[dict, str]:
    """The variables that a snippet makes, and what it prints."""
    torch.manual_seed(0)
    variables, out = {}, io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, variables)
    return variables, out.getvalue()


def test_every_block_has_a_section():
    assert sorted(SECTIONS) == sorted(CLASSES)
    assert len(re.findall(r'^## ', PAGE, re.MULTILINE)) == len(CLASSES)


def test_the_table_leads_from_papers_to_blocks():
    rows = re.findall(r'^\| (?!Model|---).*$', PAGE, re.MULTILINE)
    models = [row.split(' | ')[0] for row in rows]
    assert models == sorted(models, key=str.lower)
    named = set()
    for row in rows:
        (paper,) = re.findall(PAPER, row)
        for name, anchor in re.findall(r'\[(\w+)\]\(#(\w+)\)', row):
            assert anchor == name.lower() and paper in re.findall(PAPER, SECTIONS[name])
            named.add((paper, name))
    for name, section in SECTIONS.items():
        for paper in re.findall(PAPER, section):
            assert (paper, name) in named, f'the table does not lead from {paper} to {name}'


@over_all_blocks
def test_papers_are_those_of_the_code(name):
    module = inspect.getmodule(getattr(blocks, name))
    papers = re.findall(r'https://arxiv\.org/abs/(\d{4}\.\d{5})', module.__doc__)
    found = re.findall(PAPER, SECTIONS[name])
    assert (found and set(found) <= set(papers)) or not papers, f'{found}, but {module.__name__} names {papers}'


@over_all_blocks
def test_snippets_run_and_print_what_they_say(name):
    code = snippet(name)
    (said,) = re.findall(r'print\(.*\)  # (.*)\n', code)
    assert run(code)[1] == said + '\n'


@over_all_blocks
def test_costs_are_counted(name):
    (formula, *_) = re.findall(r'`(.*?)`', field(name, 'Cost'))
    code = snippet(name)
    variables, _ = run(code)
    block, x = variables['block'].eval(), variables['x']
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    (call,) = [node for node in calls if getattr(node.func, 'id', '') == name]
    arguments = inspect.signature(getattr(blocks, name)).bind(
        *map(ast.literal_eval, call.args), **{one.arg: ast.literal_eval(one.value) for one in call.keywords}
    )
    arguments.apply_defaults()
    values = dict(arguments.arguments)
    if name in INSIDE:
        values['H'], values['W'] = x
    elif BLOCKS[name].channels_first:
        _, values['C'], values['H'], values['W'] = x.shape
    else:
        _, values['H'], values['W'], values['C'] = x.shape
    values['N'] = values['H'] * values['W']
    if 'pool_ratio' in values:
        values['P'] = (values['H'] // values['pool_ratio']) * (values['W'] // values['pool_ratio'])
    stated = eval(formula.replace('·', '*').replace('²', '**2').replace('⁴', '**4'), values)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        block(x)
    counted = counter.get_total_flops() / 2
    assert counted == pytest.approx(stated, rel=0.02)


@over_all_blocks
def test_what_it_equals_exists(name):
    said = re.findall(r'`(.*?)`', field(name, 'Equals'))
    assert said or 'formula' in field(name, 'Equals')
    for one in said:
        if '.' in one:
            module, _, attribute = one.rpartition('.')
            assert hasattr(importlib.import_module(module), attribute), one
        else:
            assert any((ROOT / 'tests' / 'golden' / folder).glob(f'{one}.json') for folder in ('blocks', 'models')), one


@over_all_blocks
def test_kernels_are_in_the_state_that_it_says(name):
    text, said = field(name, 'Kernel'), {}
    for part in text.split('; ') if '`' in text else []:
        ops, _, state = part.partition(': ')
        said |= {op: state for op in re.findall(r'`(\w+)`', ops)}
    runs = set()
    if name in BLOCKS:
        called = [node.target for node in to_fx(BLOCKS[name].new()).graph.nodes if node.op == 'call_function']
        runs = {op for op in kernels.__all__ if getattr(kernels, op) in called} - {'normalize'}
    assert said == {op: 'Triton kernel' if op in OPS else 'PyTorch reference' for op in runs}
    assert said or text == "PyTorch's layers"


def test_the_readme_leads_here():
    assert '](docs/blocks.md)' in (ROOT / 'README.md').read_text()
