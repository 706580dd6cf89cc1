"""Kernels compile for GPUs that are not here, fit them and spill nothing."""

import json
import subprocess
import sys

import pytest

from attnzoo.kernels._registry import OPS, cases
from attnzoo.kernels.aot import TARGETS, report

pytest.importorskip('triton')


def test_a_published_shape_compiles_for_nvidia_and_amd() -> None:
    case = next(case for case in cases('window_attention') if case.name == '24-channel heads')
    rows = report('window_attention', [case], ['sm_90', 'gfx942'])
    assert {(row.direction, row.target) for row in rows} == {
        (direction, target) for direction in ('forward', 'backward') for target in ('sm_90', 'gfx942')
    }
    for row in rows:
        assert row.passes and 0 < row.registers <= 512 and row.dtype == 'bf16', row
    assert any(row.shared_bytes for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize('op', OPS)
def test_every_published_shape_compiles_for_every_target(op: str, tmp_path) -> None:
    command = [sys.executable, '-m', 'attnzoo.kernels.aot', '--op', op, '--json', tmp_path / 'rows.json']
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, '\n'.join(line for line in process.stdout.splitlines() if ' ok ' not in line)
    rows = json.loads((tmp_path / 'rows.json').read_text())
    assert {row['target'] for row in rows} == set(TARGETS)
    assert {row['dtype'] for row in rows} == {'bf16', 'fp16', 'fp32'}


def test_an_unknown_op_is_refused() -> None:
    process = subprocess.run(
        [sys.executable, '-m', 'attnzoo.kernels.aot', '--op', 'window'], capture_output=True, text=True
    )
    assert process.returncode == 2
    assert "invalid choice: 'window'" in process.stderr and 'window_attention' in process.stderr
