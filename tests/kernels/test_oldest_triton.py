"""The kernels work with the oldest Triton that the project takes: that of torch 2.11, older than the one installed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# The interpreter of this Triton calls what NumPy 2.4 took away.
OLDEST = ('triton==3.6.0', 'numpy<2.4')

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of a process that imports them: they lie in a folder that is searched first."""
    folder = tmp_path_factory.mktemp('oldest')
    install = [
        sys.executable,
        '-m',
        'pip',
        'install',
        '--quiet',
        '--no-deps',
        '--only-binary=:all:',
        '--target',
        folder,
    ]
    process = subprocess.run([*install, *OLDEST], capture_output=True, text=True)
    if process.returncode:
        pytest.skip(f'pip brings no {" and ".join(OLDEST)} here: {process.stderr.strip().splitlines()[-1]}')
    paths = (str(folder), os.environ.get('PYTHONPATH', ''))
    cache = tmp_path_factory.mktemp('compiled')
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(filter(None, paths)), 'TRITON_CACHE_DIR': str(cache)}
    version = [sys.executable, '-c', 'import triton; print(triton.__version__)']
    found = subprocess.run(version, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == OLDEST[0].partition('==')[2]
    return environment


def test_kernels_in_the_interpreter(environment: dict[str, str]) -> None:
    environment = environment | {'TRITON_INTERPRET': '1', 'OMP_NUM_THREADS': '1'}
    tests = [
        sys.executable,
        '-m',
        'pytest',
        '-q',
        '-p',
        'no:cacheprovider',
        '-m',
        'kernel and not slow',
        'tests/kernels',
    ]
    process = subprocess.run(tests, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout[-8000:] + process.stderr[-2000:]
    passed = re.search(r'(\d+) passed', process.stdout)
    assert passed and int(passed[1]) >= 10


def test_kernels_compile(environment: dict[str, str], tmp_path: Path) -> None:
    report = tmp_path / 'report.json'
    options = ['--target', 'sm_90', '--case', 'Swin-T stage 1, shifted', '--json', report]
    command = [sys.executable, '-m', 'attnzoo.kernels.aot', *options]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout[-8000:] + process.stderr[-2000:]
    tables = json.loads(report.read_text())
    assert {(row['dtype'], row['direction']) for row in tables['rows']} == {
        (dtype, direction) for dtype in ('bf16', 'fp16', 'fp32') for direction in ('forward', 'backward')
    }
    assert tables['predictions']
