"""Time and memory of every op against what PyTorch offers for it: `python -m attnzoo.kernels.bench`.

An op is timed only if its tests pass. Every way to its result is timed in turn with ours: on a GPU the kernel, as
called and as a replayed CUDA graph; elsewhere the reference. Results go to a JSON file, with a Markdown table and a
plot of the same name beside it. On a GPU that the compilation report knows, the kernel's measured time stands beside
the one that the report predicts.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnzoo.kernels._launch import target_of
from attnzoo.kernels._measure import Ratio, copy_bandwidth, interleave, peak_bytes, replay
from attnzoo.kernels._registry import OPS, Case, cases
from attnzoo.kernels._report.model import DEVICES
from attnzoo.kernels.aot import report

CHECKOUT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Row:
    """One way to an op's result at one shape. Without a time, `error` says why; `graph_` is of a replayed CUDA graph.

    `predicted_fraction` is the part of the kernel's time that the floor takes, as the compilation report has it.
    """

    op: str
    case: str
    shape: str
    batch: int
    dtype: str
    direction: str
    way: str
    seconds: float | None = None
    peak_bytes: int | None = None
    ours_over_this: Ratio | None = None
    floor_bytes: int = 0
    floor_seconds: float = 0.0
    graph_seconds: float | None = None
    ours_over_this_graph: Ratio | None = None
    predicted_fraction: float | None = None
    error: str = ''
    graph_error: str = ''


def gate(op: str, tests: Path = CHECKOUT / 'tests' / 'kernels') -> None:
    """Ends the program unless the tests of an op pass."""
    file = tests / f'test_{op}.py'
    if not file.is_file():
        sys.exit(f'{op} is not timed: its tests, {file}, are not there (they come with a checkout)')
    process = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-m', 'not slow', file], cwd=tests, capture_output=True, text=True
    )
    if process.returncode:
        sys.exit(f'{op} is not timed, because its tests fail:\n{process.stdout[-4000:]}')


def measure(
    case: Case,
    op: str,
    device: torch.device,
    batch: int,
    pairs: int,
    bandwidth: float,
    rivals: Mapping[str, Callable[..., Tensor]],
    predicted: Mapping[str, float] | None = None,
) -> list[Row]:
    """A row for each way (the reference, the rivals, the kernel where there is a GPU) and direction."""
    dtype = torch.bfloat16 if device.type == 'cuda' else torch.float32
    inputs = case.inputs(batch, device, dtype)
    reference = partial(case.function, backend='torch')
    ours = partial(case.function, backend='triton') if device.type == 'cuda' else reference
    ways: dict[str, Callable[..., Tensor]] = {'reference': reference, **rivals}
    forward_floor, backward_floor = case.floor_bytes(inputs)
    rows = []
    for direction, floor in (('forward', forward_floor), ('forward+backward', forward_floor + backward_floor)):
        row = Row(
            op, case.name, case.shape, batch, str(dtype).removeprefix('torch.'), direction, 'kernel',
            floor_bytes=floor, floor_seconds=floor / bandwidth,
        )  # fmt: skip
        own_call = _call(ours, inputs, direction)
        own = replace(row, predicted_fraction=(predicted or {}).get(direction))
        own_graph = None
        if device.type == 'cuda':
            try:
                own_graph = replay(own_call, device)
            except Exception as error:
                own = replace(own, graph_error=_in_a_line(error))
        for name, way in ways.items():
            torch._dynamo.reset()
            call = _call(way, inputs, direction)
            try:
                taken = interleave(own_call, call, device, pairs)
                peak = peak_bytes(call, device)
            except Exception as error:  # a rival that cannot take a shape is a finding, not a failure
                rows.append(replace(row, way=name, error=_in_a_line(error)))
                continue
            own = replace(own, seconds=own.seconds or taken.seconds)
            found = replace(row, way=name, seconds=taken.other_seconds, peak_bytes=peak, ours_over_this=taken.ratio)
            if own_graph is not None:
                try:
                    taken = interleave(own_graph, replay(call, device), device, pairs)
                    own = replace(own, graph_seconds=own.graph_seconds or taken.seconds)
                    found = replace(found, graph_seconds=taken.other_seconds, ours_over_this_graph=taken.ratio)
                except Exception as error:
                    found = replace(found, graph_error=_in_a_line(error))
            rows.append(found)
        if ours is not reference:
            rows.append(replace(own, peak_bytes=peak_bytes(own_call, device)))
    return rows


def _in_a_line(error: Exception) -> str:
    return f'{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}'


def predict(op: str, case: Case, device: torch.device, bandwidth: float) -> dict[str, float]:
    """The fraction of the floor that the compilation report predicts, by direction; none for a GPU it does not know."""
    target = target_of(torch.empty(0, device=device))
    for name, known in DEVICES.items():
        if (known.target.backend, known.target.arch) == (target.backend, target.arch):
            here = known._replace(target=target, bandwidth=bandwidth)
            in_bfloat16 = report(op, [replace(case, all_dtypes=False)], {name: here}).summaries
            return {summary.direction: summary.fraction for summary in in_bfloat16}
    return {}


def _call(way: Callable[..., Tensor], inputs: dict[str, Any], direction: str) -> Callable[[], Any]:
    tensors = [x for x in inputs.values() if isinstance(x, Tensor) and x.requires_grad]

    def forward() -> Tensor:
        with torch.no_grad():
            return way(**inputs)

    def both() -> tuple[Tensor | None, ...]:
        out = way(**inputs)
        return torch.autograd.grad(out, tensors, out, allow_unused=True)  # padding, on maps that divide

    return forward if direction == 'forward' else both


def markdown(rows: list[Row], machine: dict[str, str]) -> str:
    lines = [
        ', '.join(f'{key} {value}' for key, value in machine.items()) + '.',
        '',
        'Time is a median. "Ours / this" is below 1 where ours is faster: the median over interleaved pairs and its '
        '95 % interval. A graph is a replayed CUDA graph, which leaves the host out. The floor is the time that '
        'copying the bytes which must move would take.',
        '',
        '| op | case | direction | way | ms | ours / this | graph ms | ours / this, graphs | peak MiB | floor ms |',
        '|---|---|---|---|---:|---|---:|---|---:|---:|',
    ]
    for row in rows:
        head = f'| {row.op} | {row.case} ({row.batch} x {row.shape}) | {row.direction} | {row.way} |'
        if row.seconds is None or row.peak_bytes is None:
            lines.append(f'{head} | {row.error} | | | | |')
            continue
        cells = [_milliseconds(row.seconds), _compared(row.ours_over_this)]
        cells += [_milliseconds(row.graph_seconds), row.graph_error or _compared(row.ours_over_this_graph)]
        cells += [f'{row.peak_bytes / 2**20:.1f}', _milliseconds(row.floor_seconds)]
        lines.append(f'{head} ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines + _beside_prediction(rows)) + '\n'


def _milliseconds(seconds: float | None) -> str:
    return '' if seconds is None else f'{seconds * 1e3:.3f}'


def _compared(ratio: Ratio | None) -> str:
    return '' if ratio is None else f'{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})'


def _beside_prediction(rows: list[Row]) -> list[str]:
    """What the kernels took beside what the compilation report says of them: where the two part, its model is wrong."""
    lines = []
    for row in rows:
        seconds = row.graph_seconds or row.seconds
        if row.predicted_fraction is None or seconds is None:
            continue
        cells = [f'{row.op}', f'{row.case} ({row.batch} x {row.shape})', row.direction]
        cells += [_milliseconds(row.floor_seconds / row.predicted_fraction), _milliseconds(seconds)]
        cells += [f'{row.predicted_fraction:.2f}', f'{row.floor_seconds / seconds:.2f}']
        lines.append('| ' + ' | '.join(cells) + ' |')
    if not lines:
        return []
    return [
        '',
        'The kernel as the compilation report predicts it from the count of its instructions '
        '(attnzoo/kernels/_report/model.py has what it assumes), and as measured: as a graph where that could be had.',
        '',
        '| op | case | direction | predicted ms | measured ms | predicted part of the floor | measured |',
        '|---|---|---|---:|---:|---:|---:|',
        *lines,
    ]


def plot(rows: list[Row], machine: dict[str, str], path: Path) -> None:
    """Time of every way over the floor, a group of bars for each shape, a panel for each direction."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    shown = [row for row in rows if row.seconds is not None]
    directions = sorted({row.direction for row in shown})
    ways = list(dict.fromkeys(row.way for row in shown))
    groups = list(dict.fromkeys((row.op, row.case) for row in shown))
    figure, panels = pyplot.subplots(
        1,
        len(directions),
        figsize=(7 * len(directions), 1.5 + 0.2 * len(groups) * (len(ways) + 1)),
        sharey=True,
        squeeze=False,
        layout='constrained',
    )
    for panel, direction in zip(panels[0], directions, strict=True):
        for i, way in enumerate(ways):
            bars = [r for r in shown if (r.direction, r.way) == (direction, way)]
            times = {(r.op, r.case): (r.seconds or 0.0) / r.floor_seconds for r in bars}
            places = [j + (i + 1) / (len(ways) + 1) - 0.5 for j, group in enumerate(groups) if group in times]
            panel.barh(places, [times[g] for g in groups if g in times], 0.9 / (len(ways) + 1), label=way)
        panel.set(title=direction, xlabel='time / time of copying the bytes that must move', yticks=range(len(groups)))
        panel.set_yticklabels([f'{op}\n{case}' for op, case in groups], fontsize=8)
        panel.axvline(1, color='black', linewidth=0.8)
    panels[0][0].set_ylim(len(groups) - 0.5, -0.5)
    panels[0][0].legend(fontsize=8)
    figure.suptitle(', '.join(f'{key} {value}' for key, value in machine.items()), fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def describe_machine(device: torch.device) -> dict[str, str]:
    try:
        triton = version('triton')
    except PackageNotFoundError:
        triton = 'none'
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else f'{platform.machine()} CPU'
    threads = {} if device.type == 'cuda' else {'threads': str(torch.get_num_threads())}
    return {'device': name, **threads, 'torch': torch.__version__, 'triton': triton}


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m attnzoo.kernels.bench', description=__doc__)
    parser.add_argument('--op', choices=OPS, help='one op; default: all')
    parser.add_argument('--case', default='', help='only cases whose name holds this text')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--batch', type=int, help="images of a call; default: the case's on a GPU, 1 on a CPU")
    parser.add_argument('--pairs', type=int, default=20, help='interleaved pairs of each comparison (default: 20)')
    parser.add_argument('--json', type=Path, help='default: benchmarks/results/kernels_DEVICE.json')
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: there is no GPU that torch can use here')
    path = arguments.json or CHECKOUT / 'benchmarks' / 'results' / f'kernels_{device.type}.json'
    path.parent.mkdir(parents=True, exist_ok=True)

    machine, bandwidth, rows = describe_machine(device), copy_bandwidth(device), []
    machine['copy bandwidth'] = f'{bandwidth / 1e9:.0f} GB/s'
    for op in [arguments.op] if arguments.op else OPS:
        try:
            selected = cases(op, arguments.case)
        except ValueError as error:
            parser.error(str(error))
        gate(op)
        for case in selected:
            batch = arguments.batch or (case.batch if device.type == 'cuda' else 1)
            rivals = {'compiled reference': torch.compile(partial(case.function, backend='torch')), **case.rivals}
            predicted = None
            if device.type == 'cuda' and batch == case.batch:
                predicted = predict(op, case, device, bandwidth)
            rows += measure(case, op, device, batch, arguments.pairs, bandwidth, rivals, predicted)
    path.write_text(json.dumps({'machine': machine, 'rows': [asdict(row) for row in rows]}, indent=1) + '\n')
    table = markdown(rows, machine)
    path.with_suffix('.md').write_text(table)
    plot(rows, machine, path.with_suffix('.png'))
    print(table)


if __name__ == '__main__':
    main()
