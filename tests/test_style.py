"""The linter, the formatter and the type checker have nothing to say."""

import subprocess
import sys

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_linter(root):
    run(sys.executable, '-m', 'ruff', 'check', '.', cwd=root)


def test_formatter(root):
    run(sys.executable, '-m', 'ruff', 'format', '--check', '.', cwd=root)


def test_type_checker(root):
    run('make', 'links', cwd=root)
    run(sys.executable, '-m', 'mypy', cwd=root)


def test_an_editor_finds_the_import_name(root):
    """The links cover every folder of the mapping, and both checkers are pointed at them."""
    run('make', 'links', cwd=root)
    settings = tomllib.loads((root / 'pyproject.toml').read_text())['tool']
    for package, folder in settings['setuptools']['package-dir'].items():
        for path in (root / folder).glob('*.py'):
            linked = root / '.types' / package.replace('.', '/') / path.name
            assert linked.resolve() == path, f'{linked} does not lead to {path}: add it to `make links`'
    assert settings['mypy']['mypy_path'] == '.types' and '.types' in settings['pyright']['extraPaths']
