"""The README does what it says: its snippets run as pasted, one after the other, and its commands and links exist."""

import re
import shlex
import subprocess
import sys

import pytest

from attnzoo.train import config
from attnzoo.train.cli import app


@pytest.fixture(scope='session')
def readme(root):
    return (root / 'README.md').read_text()


def test_snippets_run_in_order(readme, tmp_path):
    """In an empty folder, without weights: as on the reader's machine."""
    snippets = re.findall(r'```python\n(.*?)```', readme, re.DOTALL)
    assert len(snippets) >= 3
    done = subprocess.run(
        [sys.executable, '-c', '\n'.join(snippets)],
        cwd=tmp_path,
        env={'PATH': '/usr/bin:/bin', 'HOME': str(tmp_path), 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def commands(readme):
    """Every line of an indented or fenced block that starts with `attnzoo` or with `make`, without its comment."""
    for line in readme.splitlines():
        words = shlex.split(line, comments=True) if re.match(r'( {4}|\$ )?(attnzoo|make) ', line) else []
        if words:
            yield words


def test_commands_exist(readme, root):
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    targets = set(re.findall(r'^([a-z-]+):', (root / 'Makefile').read_text(), re.MULTILINE))
    found = list(commands(readme))
    assert {words[0] for words in found} == {'attnzoo', 'make'}
    for program, verb, *arguments in found:
        if program == 'make':
            assert verb in targets
        else:
            assert verb in verbs
        if verb == 'train':
            recipe, *settings = arguments
            config.load(recipe, settings)


def test_links_and_names_lead_somewhere(readme, root, our_models):
    for target in re.findall(r'\]\((?!https?://)([^)#]+)\)', readme):
        assert (root / target).exists(), target
    for name in our_models:
        assert f'`{name}`' in readme, f'the README does not name {name}'
    for path in re.findall(r'\b(?:docs|benchmarks|model_cards|configs)/[\w./]+\.\w+', readme):
        assert (root / path).exists(), path
