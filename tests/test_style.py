"""The linter, the formatter and the type checker have nothing to say."""

import subprocess
import sys


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_linter(root):
    run(sys.executable, '-m', 'ruff', 'check', '.', cwd=root)


def test_formatter(root):
    run(sys.executable, '-m', 'ruff', 'format', '--check', '.', cwd=root)


def test_type_checker(root):
    # The folders are mapped into one import name; a checker follows links, not the editable install's import hook.
    links = root / '.types' / 'attnzoo'
    links.mkdir(parents=True, exist_ok=True)
    for target in (root / 'package').glob('*'):
        link(links / target.name, target)
    for folder in ('backbones', 'blocks', 'configs', 'kernels', 'train'):
        link(links / folder, root / folder)
    run(sys.executable, '-m', 'mypy', cwd=root)


def link(path, target):
    if not path.is_symlink():
        path.symlink_to(target)
