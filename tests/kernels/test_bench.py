"""The benchmark refuses ops whose tests fail, and its rivals compute what we do."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attnzoo.kernels import bench
from attnzoo.kernels._measure import Ratio, interleave, peak_bytes
from attnzoo.kernels._registry import cases
from attnzoo.kernels._testing import results

KINDS = (  # one of each kind of call; the others are slow
    'Swin-T stage 3, shifted',
    'DaViT-T stage 1 on 61 x 61',
    'MaxViT-T stage 1, grid',
    'CrossFormer-S stage 1, long distance',
    'SwinV2-T stage 1 at 256',
)


@pytest.mark.parametrize(
    'case',
    [
        pytest.param(case, id=case.name, marks=() if case.name in KINDS else pytest.mark.slow)
        for case in cases('window_attention')
    ],
)
def test_sdpa_with_a_mask_is_the_same_function(case) -> None:
    inputs = case.inputs(1, 'cpu', torch.float64)
    if inputs['q'].shape[1] % inputs['window'][0] == 0:
        inputs.pop('padding', None)  # it has no effect, and SDPA leaves it out
    d_out = torch.randn(1, *inputs['q'].shape[1:3], inputs['q'].shape[3] // 3, dtype=torch.float64)
    found, expected = (
        results(function, inputs, torch.float64, 'cpu', d_out) for function in (case.rivals['SDPA'], case.function)
    )
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f'{name}: {text}')


@pytest.mark.slow
def test_flex_attention_is_the_same_function() -> None:
    case = next(case for case in cases('window_attention') if case.name == 'Swin-T stage 3')
    inputs = case.inputs(1, 'cpu', torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(case.rivals['FlexAttention'](**inputs), case.function(**inputs))


def test_an_op_whose_tests_fail_or_are_missing_is_not_timed(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r'its tests, .* are not there'):
        bench.gate('window_attention', tmp_path)
    test = tmp_path / 'test_window_attention.py'
    test.write_text('def test_it():\n    assert False, "a wrong result"\n')
    with pytest.raises(SystemExit, match=r'because its tests fail:\n(.|\n)*a wrong result'):
        bench.gate('window_attention', tmp_path)
    test.write_text('def test_it():\n    assert True\n')
    bench.gate('window_attention', tmp_path)


def test_rows_become_a_table_and_a_plot(tmp_path: Path) -> None:
    case = next(case for case in cases('window_attention') if case.name == 'Swin-T stage 3')
    ways = {name: way for name, way in case.rivals.items() if name == 'SDPA'}
    rows = bench.measure(case, 'window_attention', torch.device('cpu'), 1, 3, 1e10, ways)
    assert {(row.way, row.direction) for row in rows} == {
        (way, direction) for way in ('reference', 'SDPA') for direction in ('forward', 'forward+backward')
    }
    unit = 14 * 14 * 384 * 4
    for row in rows:
        assert row.floor_bytes == (4 * unit if row.direction == 'forward' else 11 * unit)
        assert row.seconds > row.floor_seconds > 0 and row.peak_bytes > unit and row.ours_over_this.low > 0, row
    assert json.loads(json.dumps([row.__dict__ for row in rows]))
    table = bench.markdown(rows, {'device': 'this'})
    assert table.count('Swin-T stage 3') == 4 and 'SDPA' in table
    bench.plot(rows, {'device': 'this'}, tmp_path / 'plot.png')
    assert (tmp_path / 'plot.png').stat().st_size > 1000


def test_a_measured_kernel_stands_beside_its_prediction() -> None:
    row = bench.Row('op', 'a case', '7x7', 64, 'bfloat16', 'forward', 'kernel', 2e-3, 1 << 20, floor_seconds=1e-3)
    assert 'predicted' not in bench.markdown([row], {'device': 'this'})
    found = replace(row, predicted_fraction=0.8, graph_seconds=1.25e-3)
    *_, last = bench.markdown([row, found], {'device': 'this'}).splitlines()
    assert last == '| op | a case (64 x 7x7) | forward | 1.250 | 1.250 | 0.80 | 0.80 |'
    *_, last = bench.markdown([replace(found, graph_seconds=None)], {'device': 'this'}).splitlines()
    assert last == '| op | a case (64 x 7x7) | forward | 1.250 | 2.000 | 0.80 | 0.50 |'


def test_pairs_give_the_ratio_with_an_interval_around_it() -> None:
    a = torch.randn(200, 200)
    pairs = interleave(lambda: a @ a, lambda: [a @ a for _ in range(4)], torch.device('cpu'), 40)
    assert isinstance(pairs.ratio, Ratio) and pairs.ratio.low <= pairs.ratio.median <= pairs.ratio.high < 1
    assert pairs.seconds < pairs.other_seconds


def test_peak_is_the_most_that_lives_at_a_time() -> None:
    def call() -> torch.Tensor:
        x = torch.ones(1000, 250)  # a megabyte
        y = x + 1  # two at a time
        del x
        return y.sum()

    assert 2_000_000 <= peak_bytes(call, torch.device('cpu')) < 2_100_000
