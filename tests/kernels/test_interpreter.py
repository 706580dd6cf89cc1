"""Runs the tests of all kernels in Triton's interpreter, which takes the place of a GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.skipif(torch.cuda.is_available(), reason='the kernels run on the GPU of this machine')
def test_kernels_in_the_interpreter() -> None:
    # Triton reads the variable when kernels are decorated: hence a process of its own.
    process = subprocess.run(
        [
            sys.executable,
            '-m',
            'pytest',
            '-q',
            '-m',
            'kernel and not slow',
            '-p',
            'no:cacheprovider',
            Path(__file__).parent,
        ],
        env=os.environ | {'TRITON_INTERPRET': '1', 'OMP_NUM_THREADS': '1'},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout[-8000:] + process.stderr[-2000:]
    passed = re.search(r'(\d+) passed', process.stdout)
    assert passed and int(passed[1]) >= 10
