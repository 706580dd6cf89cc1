"""Kernels compile for GPUs that are not here, fit them and spill nothing, and what they issue is told."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from attnzoo.kernels import aot
from attnzoo.kernels._launch import Launch
from attnzoo.kernels._registry import OPS, cases
from attnzoo.kernels._report.model import DEVICES

pytest.importorskip('triton')

SHAPE = '24-channel heads'


@pytest.fixture(scope='module')
def report() -> aot.Report:
    case = replace(cases('window_attention', SHAPE)[0], limits=(100.0, 0.001))
    return aot.report('window_attention', [case], {name: DEVICES[name] for name in ('sm_90', 'gfx942')})


def test_a_published_shape_compiles_for_nvidia_and_amd(report: aot.Report) -> None:
    assert {(row.direction, row.target) for row in report.rows} == {
        (direction, target) for direction in ('forward', 'backward') for target in ('sm_90', 'gfx942')
    }
    for row in report.rows:
        assert row.passes and 0 < row.registers <= 512 and row.dtype == 'bf16', row
    assert any(row.shared_bytes for row in report.rows)


def test_what_a_launch_does_is_counted(report: aot.Report) -> None:
    pairs = 64 * 64 * 3 * 49 * 49  # images, windows, heads, queries and keys
    for row in report.rows:
        assert row.programs > 0 and row.ctas_per_sm > 0 and row.waves > 0, row
        assert row.data_loops == (row.kernel == 'table_sum_kernel'), row
        lanes = row.programs * row.warps * (64 if row.target == 'gfx942' else 32)
        assert row.instructions > row.tensor + row.special + row.memory
        if row.kernel.startswith('attention'):  # an exp2 for each pair at least
            assert row.tensor > 0 and row.special * lanes > pairs, row
            assert row.access_bytes >= 0.9 * row.bytes


def test_the_next_window_is_loaded_while_one_is_computed(report: aot.Report) -> None:
    """Where many follow each other in a program: shared memory holds both."""
    few = replace(cases('window_attention', SHAPE)[0], batch=2, limits=None)
    alone = aot.report('window_attention', [few], {'sm_90': DEVICES['sm_90']})
    both, one = (
        next(row for row in rows if row.kernel == 'attention_forward' and row.target == 'sm_90')
        for rows in (report.rows, alone.rows)
    )
    # At the least, keys and values of 64 tokens of 24 channels, in bfloat16.
    assert both.shared_bytes >= one.shared_bytes + 2 * 64 * 24 * 2


@pytest.mark.parametrize(
    ('target', 'dtype', 'spilled', 'passes'),
    [
        ('sm_90', 'bf16', 0, True),
        ('sm_90', 'bf16', 8, False),
        ('sm_80', 'fp16', 256, True),
        ('sm_80', 'fp16', 264, False),
        ('sm_90', 'fp32', 1000, True),
        ('gfx942', 'bf16', 1000, True),
    ],
)
def test_a_launch_may_spill_little(report: aot.Report, target: str, dtype: str, spilled: int, passes: bool) -> None:
    row = replace(report.rows[0], target=target, dtype=dtype, spill_bytes=spilled)
    assert row.passes == passes
    assert not replace(row, fits=False).passes


def test_a_summary_adds_the_launches_up(report: aot.Report) -> None:
    unit = 64 * 56 * 56 * 72 * 2
    floors = {'forward': 4 * unit, 'backward': 7 * unit, 'forward+backward': 11 * unit}
    assert len(report.summaries) == 6
    for summary in report.summaries:
        rows = [row for row in report.rows if row.target == summary.target and row.direction in summary.direction]
        assert summary.launches == len(rows) and summary.bytes == sum(row.bytes for row in rows) >= summary.floor_bytes
        assert summary.floor_bytes == floors[summary.direction]
        issued = sum(row.issue_over_bytes * row.bytes for row in rows) / summary.floor_bytes
        assert summary.issue_over_bytes == pytest.approx(issued)
        assert 0 < summary.fraction <= min(1 / 1.1, 0.75 / issued)
    limits = {(x.target, x.direction): x.limit for x in report.summaries if x.limit is not None}
    assert limits == {('sm_90', 'forward'): 100.0, ('sm_90', 'forward+backward'): 0.001}


def test_a_check_fails_above_a_limit(
    report: aot.Report, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path
) -> None:
    monkeypatch.setattr(aot, 'report', lambda *arguments, **options: report)
    codes = []
    for options in ([], ['--check']):
        path = tmp_path / 'report.json'
        monkeypatch.setattr(sys, 'argv', ['aot', '--case', SHAPE, '--json', str(path), *options])
        with pytest.raises(SystemExit) as ended:
            aot.main()
        codes.append(ended.value.code)
        out = capsys.readouterr().out
        assert 'limit 0.00 ABOVE' in out and 'limit 100.00 ok' in out and '1 shapes above their limits' in out
    assert codes == [False, True]
    tables = json.loads(path.read_text())
    assert len(tables['rows']) == len(report.rows) and len(tables['predictions']) == 6


def test_bytes_of_a_launch_are_those_of_its_tensors() -> None:
    packed = torch.empty(2, 8, 3, 16, dtype=torch.bfloat16, device='meta')
    q, k, v = packed.unbind(2)
    row = torch.empty(16, device='meta')
    arguments = {'q': q, 'k': k, 'v': v, 'again': q, 'rows': row.expand(100, 16), 'pair': (row[:8], 3), 'none': None}
    launch = Launch(None, arguments, (1,), {})
    assert aot.given_bytes(launch) == packed.numel() * 2 + 16 * 4 + 8 * 4


def test_kernels_of_pytorch_are_told() -> None:
    x = torch.empty(4, 4, device='meta', requires_grad=True)
    with aot.torch_kernels() as forward:
        y = x[:2].exp()
        y.detach().new_empty(3), y.contiguous()
        torch.zeros(3, device='meta').to(torch.bfloat16)
    assert forward == ['aten::exp', 'aten::zeros', 'aten::to']
    with aot.torch_kernels() as backward:
        torch.autograd.grad(y, x, torch.empty_like(y))
    assert 'aten::mul' in backward and 'aten::slice' not in backward


@pytest.mark.slow
@pytest.mark.parametrize('op', OPS)
def test_every_published_shape_compiles_for_every_target(op: str, tmp_path) -> None:
    command = [sys.executable, '-m', 'attnzoo.kernels.aot', '--op', op, '--check', '--json', tmp_path / 'report.json']
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, '\n'.join(line for line in process.stdout.splitlines() if ' ok ' not in line)
    tables = json.loads((tmp_path / 'report.json').read_text())
    assert {row['target'] for row in tables['rows']} == set(DEVICES)
    assert {row['dtype'] for row in tables['rows']} == {'bf16', 'fp16', 'fp32'}
    assert {(x['case'], x['direction']) for x in tables['predictions']} == {
        (case.name, direction) for case in cases(op) for direction in ('forward', 'backward', 'forward+backward')
    }


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (['--op', 'window'], "invalid choice: 'window'"),
        (['--target', 'sm_70'], "invalid choice: 'sm_70'"),
        (['--case', 'Swin-X'], "name: expected a part of one of Swin-T stage 1, .*, got 'Swin-X'"),
        (['--check', '--target', 'sm_80'], '--check: limits are for sm_90, not for --target sm_80'),
    ],
)
def test_an_unknown_choice_is_refused(
    options: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, 'argv', ['aot', *options])
    with pytest.raises(SystemExit) as ended:
        aot.main()
    assert ended.value.code == 2
    found = capsys.readouterr().err
    assert re.search(said, found), found
