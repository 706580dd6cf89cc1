"""The rivals that benchmarks time compute what they are said to compute."""

import json
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from attnzoo.kernels import route_regions, routed_attention


def test_the_official_formulation_is_the_same_function(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / 'benchmarks'))
    from official_attention import routed_attention as official

    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 14, 14, 16, dtype=torch.float64, requires_grad=True) for _ in range(3))
    routes, _ = route_regions(q, k, (7, 7), 4)
    arguments = dict(num_heads=2, regions=(7, 7), scale=0.25)
    out, expected = official(q, k, v, routes, **arguments), routed_attention(q, k, v, routes, **arguments)
    torch.testing.assert_close(out, expected)
    gradient = torch.randn_like(out)
    for mine, true in zip(
        torch.autograd.grad(out, (q, k, v), gradient), torch.autograd.grad(expected, (q, k, v), gradient), strict=True
    ):
        torch.testing.assert_close(mine, true)


def small_cases() -> list[str]:
    with patch.object(sys, 'path', [str(Path(__file__).parents[1] / 'benchmarks'), *sys.path]):
        from ops import SMALL
    return list(SMALL)


@pytest.mark.parametrize('name', small_cases())
def test_ops_and_their_rivals_are_the_same_functions(name, root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / 'benchmarks'))
    from ops import SMALL
    from ops_cpu import step

    torch.manual_seed(0)
    case = SMALL[name]()
    for training in (False, True):
        ours, theirs = (step(case, function, False, training)() for function in (case.ours, case.theirs))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_ops_are_compared_with_their_rivals(root, tmp_path):
    command = [sys.executable, 'benchmarks/ops_cpu.py', '--case', 'stage 3', '--batch', '1', '--pairs', '3', '--json']
    subprocess.run([*command, tmp_path / 'report.json'], cwd=root, check=True)
    rows = json.loads((tmp_path / 'report.json').read_text())['rows']
    kinds = {(row['type'], row['direction']) for row in rows}
    assert len(kinds) == 4 and len(rows) == 4 * len({row['case'] for row in rows})
    assert all(row['seconds'] > 0 and row['peak_bytes'] > 0 for row in rows)


@pytest.mark.slow
def test_efficiency_is_reported_for_a_model(root, tmp_path):
    command = [sys.executable, 'benchmarks/model_efficiency.py', 'biformer_tiny', '--batch', '1', '--json']
    report = tmp_path / 'report.json'
    subprocess.run([*command, report], cwd=root, check=True)
    row = json.loads(report.read_text())['rows']['biformer_tiny']
    assert row['forward_efficiency'] > 0 and row['forward_backward_efficiency'] > 0
    assert row['forward_backward_peak_tensor_bytes'] > row['forward_peak_tensor_bytes'] > 0


@pytest.mark.slow
def test_memory_is_reported_for_images_of_any_size(root, tmp_path):
    rows, report = ['biformer_tiny', 'biformer_tiny:official'], tmp_path / 'report.json'
    options = ('--batch', '1', '--size', '256', '320', '--json', report)
    subprocess.run([sys.executable, 'benchmarks/model_efficiency.py', *rows, *options], cwd=root, check=True)
    found = json.loads(report.read_text())
    ours, official = (found['rows'][row]['forward_backward_peak_tensor_bytes'] for row in rows)
    assert found['image_size'] == [256, 320] and 0 < ours < official


@pytest.mark.slow
def test_window_attention_is_compared_with_timm(root, tmp_path):
    command = [
        sys.executable,
        'benchmarks/window_attention_cpu.py',
        '--case',
        'stage 3',
        '--batch',
        '1',
        '--pairs',
        '3',
    ]
    report = tmp_path / 'report.json'
    subprocess.run([*command, '--json', report], cwd=root, check=True)
    rows = json.loads(report.read_text())['rows']
    assert len(rows) == 8 and all(row['seconds'] > 0 and row['peak_bytes'] > 0 for row in rows)


@pytest.mark.slow
def test_models_are_compared_with_timms(root, tmp_path):
    command = [sys.executable, 'benchmarks/models_against_timm.py', 'maxvit_tiny_fused', '--batch', '1', '--pairs', '2']
    report = tmp_path / 'report.json'
    subprocess.run([*command, '--json', report], cwd=root, check=True)
    rows = json.loads(report.read_text())['rows']
    assert [row['direction'] for row in rows] == ['forward', 'forward+backward']
    assert all(row['seconds'] > 0 and row['peak_bytes'] > 0 and row['timm_peak_bytes'] > 0 for row in rows)
