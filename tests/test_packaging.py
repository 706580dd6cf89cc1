"""The wheel and the source distribution install as a user would, into a fresh environment that sees torch and timm."""

import os
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest


def run(*command, cwd):
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope='session')
def distributions(root, tmp_path_factory):
    """A source distribution of the files that git tracks or would track, and the wheel built from it."""
    work = tmp_path_factory.mktemp('build')
    listed = run('git', 'ls-files', '--cached', '--others', '--exclude-standard', cwd=root).splitlines()
    checkout = work / 'checkout'
    for name in listed:
        if (root / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            (checkout / name).write_bytes((root / name).read_bytes())
    run(sys.executable, '-m', 'build', '--outdir', work, checkout, cwd=work)
    (sdist,), (wheel,) = work.glob('*.tar.gz'), work.glob('*.whl')
    return sdist, wheel


def test_wheel_holds_one_package_and_nothing_else(distributions):
    with zipfile.ZipFile(distributions[1]) as wheel:
        names = wheel.namelist()
    top = {name.split('/')[0] for name in names}
    assert {name for name in top if not name.endswith('.dist-info')} == {'attnzoo'}
    assert not [name for name in names if '/tests/' in name or name.endswith(('.so', '.pyd'))]
    for name in (
        'attnzoo/py.typed',
        'attnzoo/backbones/biformer.py',
        'attnzoo/configs/classification/digits_biformer.yaml',
        'attnzoo/configs/detection/mmdet/_common.py',
        'attnzoo/kernels/routed_attention/reference.py',
    ):
        assert name in names


def test_source_distribution_holds_tests_cards_and_licence(distributions):
    with tarfile.open(distributions[0]) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    assert {'LICENSE', 'tests/golden/check.py', 'tests/conftest.py', 'model_cards/biformer.md', 'Makefile'} <= names


def environment_that_sees(packages, folder):
    """A virtual environment with pip and, through a .pth file, this interpreter's packages except attnzoo."""
    venv.create(folder, with_pip=True)
    python = folder / 'bin' / 'python'
    (inner,) = (folder / 'lib').glob('python*/site-packages')
    links = inner / 'shared'
    links.mkdir()
    for entry in packages.iterdir():
        if not entry.name.startswith(('attnzoo', '__editable__', 'pip', 'setuptools', '_distutils_hack', 'distutils')):
            (links / entry.name).symlink_to(entry)
    (inner / 'shared.pth').write_text(str(links))
    return python


@pytest.mark.parametrize('kind', ['wheel', 'source distribution', 'editable'])
def test_installs(kind, distributions, root, tmp_path):
    packages = next(Path(p) for p in site.getsitepackages() if (Path(p) / 'torch').is_dir())
    python = environment_that_sees(packages, tmp_path / 'venv')
    outside = tmp_path / 'elsewhere'
    outside.mkdir()
    install = [python, '-m', 'pip', 'install', '--quiet', '--no-deps']
    if kind == 'editable':
        # A copy, so that no metadata of this environment is touched; the source distribution unpacked is one.
        with tarfile.open(distributions[0]) as archive:
            archive.extractall(tmp_path, filter='data')
        (copy,) = tmp_path.glob('attnzoo-*')
        run(*install, '--editable', copy, cwd=outside)
    else:
        run(*install, distributions[kind == 'wheel'], cwd=outside)

    where = run(python, '-c', 'import attnzoo; print(attnzoo.__version__, attnzoo.__file__)', cwd=outside)
    assert str(tmp_path) in where and str(root) not in where
    script = python.with_name('attnzoo')
    assert 'train' in run(script, '--help', cwd=outside)
    assert 'biformer_tiny' in run(python, '-m', 'attnzoo', 'list', cwd=outside)
    # The recipe comes out of the package, and the name is known only because the import registered it.
    listing = "from importlib.resources import files; print((files('attnzoo.configs') / 'classification').joinpath("
    assert 'biformer' in run(python, '-c', listing + "'digits_biformer.yaml').read_text())", cwd=outside)
