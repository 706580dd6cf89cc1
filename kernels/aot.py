"""Compile every kernel ahead of time, for GPUs that need not be there: `python -m attnzoo.kernels.aot`.

Each op runs forward and backward on meta tensors; the launches that it would make are compiled for every target and
judged by the registers, the spilled and the shared memory that they take. Their machine code is followed to count what
they issue, and a model predicts from it how near an op can come to the time that its bytes take (`_report/model.py` has
its assumptions; nothing is timed). `--check` fails where a shape is above the limit that its case sets.
"""

import argparse
import functools
import importlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import profiler_legacy

from attnzoo.kernels._launch import Launch, Target, recording
from attnzoo.kernels._registry import OPS, Case, cases
from attnzoo.kernels._report import gcn, sass
from attnzoo.kernels._report.count import State, count
from attnzoo.kernels._report.model import DEVICES, Device, Work, issue_seconds, programs_resident, seconds

LIMITED = 'sm_90'  # the target that limits are for, and that tiles are chosen for
MOST_SPILLED = 256  # bytes of a thread, on NVIDIA's other targets
SAMPLED = 8  # programs of a launch that are followed

_TYPES = {torch.bfloat16: 'bf16', torch.float16: 'fp16', torch.float32: 'fp32', torch.int64: 'i64', torch.int32: 'i32'}


@dataclass(frozen=True)
class Row:
    """What one launch takes on one target, and what it does.

    Registers and spilled bytes are a thread's, shared bytes a program's, instructions a warp's (loops as often as they
    run, an average over programs); `bytes` are those of the tensors that the launch is given, `access_bytes` what its
    loads and stores ask for. On AMD, scalar instructions are left out: they are issued beside the others.
    """

    op: str
    kernel: str
    direction: str
    dtype: str
    shape: str
    target: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    fits: bool
    programs: int
    warps: int
    instructions: float
    tensor: float
    special: float
    memory: float
    data_loops: int  # loops whose trips the data decide: the launch tells how many it expects
    ctas_per_sm: int
    waves: float
    bytes: int
    access_bytes: float
    issue_over_bytes: float

    @property
    def passes(self) -> bool:
        """Fits; and in half precision on NVIDIA, spills nothing, or on the other targets little.

        What is spilled counts among the instructions. On sm_80 twice the warps spill nothing in most launches, and were
        counted to issue 1.7 to 1.9 times as much.
        """
        if not self.fits or self.dtype == 'fp32' or self.target.startswith('gfx'):
            return self.fits
        return self.spill_bytes <= (0 if self.target == LIMITED else MOST_SPILLED)

    @property
    def work(self) -> Work:
        return Work(self.programs, self.warps, self.instructions, self.special, self.bytes, self.access_bytes)


@dataclass(frozen=True)
class Summary:
    """All launches of an op at a shape, in one direction: a prediction.

    `floor_bytes` must move at least; `issue_over_bytes` and `fraction` compare the time to issue what the launches
    issue, and their predicted time, with the time that these bytes take. `torch_kernels` are PyTorch's, which are in
    neither.
    """

    op: str
    case: str
    shape: str
    batch: int
    dtype: str
    target: str
    direction: str
    launches: int
    torch_kernels: str
    bytes: int
    floor_bytes: int
    issue_over_bytes: float
    fraction: float
    limit: float | None

    @property
    def passes(self) -> bool:
        return self.limit is None or self.issue_over_bytes <= self.limit


class Recorded(NamedTuple):
    """The launches of a call and of its backward pass, and the kernels of PyTorch's that run beside them."""

    forward: list[Launch]
    backward: list[Launch]
    torch_kernels: tuple[list[str], list[str]]


class Report(NamedTuple):
    rows: list[Row]
    summaries: list[Summary]


def report(op: str, selected: Sequence[Case], devices: Mapping[str, Device], workers: int = 2) -> Report:
    """Compiles the kernels of the cases, in two processes by default: a row for each launch, dtype and device."""
    jobs: list[_Job] = []
    parts: list[tuple[Case, torch.dtype, str, Recorded]] = []
    for case in selected:
        for dtype in (torch.bfloat16, torch.float16, torch.float32) if case.all_dtypes else (torch.bfloat16,):
            for target, device in devices.items():
                recorded = record(case, dtype, device.target)
                parts.append((case, dtype, target, recorded))
                for direction in ('forward', 'backward'):
                    head = {
                        'op': op,
                        'direction': direction,
                        'dtype': _TYPES[dtype],
                        'shape': case.shape,
                        'target': target,
                    }
                    jobs += [_job(launch, device, head) for launch in getattr(recorded, direction)]
    with ProcessPoolExecutor(workers, mp_context=get_context('spawn')) as pool:
        rows = list(pool.map(_compile, jobs))
    summaries: list[Summary] = []
    done = iter(rows)
    for case, dtype, target, recorded in parts:
        forward, backward = ([next(done) for _ in launches] for launches in recorded[:2])
        summaries += _summarize(op, case, dtype, target, devices[target], forward, backward, recorded.torch_kernels)
    return Report(rows, summaries)


def record(case: Case, dtype: torch.dtype, target: Target) -> Recorded:
    """Runs a case forward and backward on paper."""
    inputs = case.inputs(case.batch, 'meta', dtype)
    with recording(target) as recorded:
        with torch_kernels() as forward_kernels:
            out = case.function(**inputs, backend='triton')
        forward = list(recorded)
        wanted = [x for x in inputs.values() if isinstance(x, Tensor) and x.requires_grad]
        d_out = torch.empty_like(out)
        with torch_kernels() as backward_kernels:
            torch.autograd.grad(out, wanted, d_out, allow_unused=True)
    return Recorded(forward, recorded[len(forward) :], (forward_kernels, backward_kernels))


@contextmanager
def torch_kernels() -> Iterator[list[str]]:
    """Collects the kernels of PyTorch's that run in this context: what is neither a view nor takes memory only.

    By a profiler, and one that prints nothing: a dispatch mode would be seen by the ops, which take another way then.
    """
    found: list[str] = []
    with profiler_legacy.profile() as profile:
        yield found
    for event in profile.function_events:
        if event.cpu_parent is None:
            found += _kernels_of(event)


def _kernels_of(event: Any) -> list[str]:
    if event.name.startswith('aten::'):
        return [event.name] if _holds_kernel(event) else []
    return [name for child in event.cpu_children for name in _kernels_of(child)]  # of the autograd engine


def _holds_kernel(event: Any) -> bool:
    return _runs(event.name) or any(map(_holds_kernel, event.cpu_children))


@functools.cache
def _runs(name: str) -> bool:
    namespace, _, function = name.partition('::')
    packet = getattr(torch.ops.aten, function, None) if namespace == 'aten' else None
    if packet is None or function.startswith(('empty', 'new_empty')):
        return False
    returned = [
        value.alias_info for overload in packet.overloads() for value in getattr(packet, overload)._schema.returns
    ]
    return not any(alias is not None and not alias.is_write for alias in returned)


class _Function(NamedTuple):
    """A jit function that a kernel is given, by what another process finds it by."""

    module: str
    name: str


class _Source(NamedTuple):
    """What the compiler is given."""

    function: _Function
    signature: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]
    parameters: list[tuple[int, int]]  # whole numbers among the compiled kernel's parameters: offset in bytes, value


class _Job(NamedTuple):
    """A launch, as another process takes it."""

    head: dict[str, Any]  # the first columns of its row
    device: Device
    source: _Source
    grid: tuple[int, ...]
    bytes: int
    data_trips: int


def _job(launch: Launch, device: Device, head: dict[str, Any]) -> _Job:
    return _Job(head, device, _source(launch), launch.grid, given_bytes(launch), launch.data_trips)


def _source(launch: Launch) -> _Source:
    """As Triton's own launcher has it: None and the number 1 are constants, multiples of 16 are known as such.

    Unless a kernel wants a parameter not to be specialized."""
    from triton.language import constexpr

    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    parameters: list[tuple[int, int]] = []
    end = 0

    def kind(value: Any, path: tuple[int, ...], constant: bool, by_value: bool, by_alignment: bool) -> Any:
        nonlocal end
        if isinstance(value, constexpr):
            value, constant = value.value, True
        if constant or value is None or (by_value and isinstance(value, int) and value == 1):
            constants[path] = _portable(value)
            return 'constexpr'
        if isinstance(value, tuple):
            return tuple(kind(item, (*path, i), False, by_value, by_alignment) for i, item in enumerate(value))
        if by_alignment and (isinstance(value, Tensor) or (by_value and isinstance(value, int) and value % 16 == 0)):
            attributes[path] = [['tt.divisibility', 16]]
        wide = isinstance(value, Tensor) or (isinstance(value, int) and not -(2**31) <= value < 2**31)
        place = -(-end // (8 if wide else 4)) * (8 if wide else 4)
        end = place + (8 if wide else 4)
        if isinstance(value, Tensor):
            return '*' + _TYPES[value.dtype]
        if isinstance(value, float):
            return 'fp32'
        parameters.append((place, value))
        return 'i64' if wide else 'i32'

    for i, parameter in enumerate(launch.kernel.params):
        by_value, by_alignment = not parameter.do_not_specialize, not parameter.do_not_specialize_on_alignment
        value = launch.arguments[parameter.name]
        signature[parameter.name] = kind(value, (i,), parameter.is_constexpr, by_value, by_alignment)
    function = _Function(launch.kernel.fn.__module__, launch.kernel.fn.__name__)
    return _Source(function, signature, constants, attributes, launch.options, parameters)


def _portable(value: Any) -> Any:
    if isinstance(value, tuple):
        return _like(value, map(_portable, value))
    return _Function(value.fn.__module__, value.fn.__name__) if hasattr(value, 'fn') else value


def _found(value: Any) -> Any:
    """The way back from `_portable`."""
    if isinstance(value, _Function):
        return getattr(importlib.import_module(value.module), value.name)
    return _like(value, map(_found, value)) if isinstance(value, tuple) else value


def _like(value: tuple[Any, ...], items: Iterable[Any]) -> tuple[Any, ...]:
    """A tuple, or a named one, of other items."""
    return type(value)(*items) if hasattr(value, '_fields') else tuple(items)


def given_bytes(launch: Launch) -> int:
    """Of the tensors that a launch is given, each once; an axis that is expanded is not stored."""
    tensors: dict[Any, int] = {}

    def add(value: Any) -> None:
        if isinstance(value, tuple):
            for item in value:
                add(item)
        if isinstance(value, Tensor):
            stored = [size for size, stride in zip(value.shape, value.stride(), strict=True) if stride]
            place = (value.untyped_storage()._cdata, value.storage_offset(), value.shape, value.stride())
            tensors[place] = math.prod(stored) * value.element_size()

    add(tuple(launch.arguments.values()))
    return sum(tensors.values())


def _compile(job: _Job) -> Row:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    device, source, programs = job.device, job.source, math.prod(job.grid)
    backend, arch, _ = device.target
    threads = 64 if backend == 'hip' else 32
    constants = {path: _found(value) for path, value in source.constants.items()}
    compiled = triton.compile(
        ASTSource(_found(source.function), source.signature, constants, source.attributes),
        target=GPUTarget(backend, arch, threads),
        options=source.options,
    )
    if backend == 'cuda':
        registers, spill = _cuda_usage(compiled.asm['cubin'])
        code = sass.disassemble(compiled.asm['cubin'])
        begin: Callable[..., State] = functools.partial(sass.begin, int(arch))
        kind, access_bytes = sass.kind, sass.access_bytes
    else:
        registers, spill = _hip_usage(compiled.asm['amdgcn'])
        code = gcn.read(compiled.asm['amdgcn'])
        begin = functools.partial(gcn.begin, compiled.asm['amdgcn'])
        kind, access_bytes = gcn.kind, gcn.access_bytes
    shared, warps = compiled.metadata.shared, source.options['num_warps']
    resident = programs_resident(registers, shared, warps, device)
    last = max(programs - 1, 0)
    sample = sorted({last * i // (SAMPLED - 1) for i in range(SAMPLED)})
    found = count(code, [begin(program, job.grid, source.parameters) for program in sample], job.data_trips)
    issued = {name: times for name, times in found.by_name.items() if kind(name) != 'scalar'}
    by_kind: dict[str, Any] = {
        x: sum(n for name, n in issued.items() if kind(name) == x) for x in ('tensor', 'special', 'memory')
    }
    instructions = sum(issued.values())
    accessed = programs * warps * sum(n * access_bytes(name) for name, n in issued.items())
    work = Work(programs, warps, instructions, by_kind['special'], job.bytes, accessed)
    return Row(
        **job.head,
        kernel=source.function.name.strip('_'),
        registers=registers,
        spill_bytes=spill,
        shared_bytes=shared,
        fits=resident > 0 and shared <= device.program_shared,
        programs=programs,
        warps=warps,
        instructions=instructions,
        **by_kind,
        data_loops=found.data_loops,
        ctas_per_sm=resident,
        waves=programs / (max(resident, 1) * device.target.multiprocessors),
        bytes=job.bytes,
        access_bytes=accessed,
        issue_over_bytes=issue_seconds(work, device) / (job.bytes / device.bandwidth),
    )


def _cuda_usage(cubin: bytes) -> tuple[int, int]:
    """Registers and spilled bytes a thread."""
    import triton

    tool = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / 'cuobjdump'
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([tool, '-res-usage', file.name], capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r'\b(REG|STACK|LOCAL):(\d+)', usage))
    return int(found['REG']), int(found['STACK']) + int(found['LOCAL'])


def _hip_usage(assembly: str) -> tuple[int, int]:
    registers = re.search(r'\.vgpr_count:\s+(\d+)', assembly)
    spill = re.search(r'\.private_segment_fixed_size:\s+(\d+)', assembly)
    assert registers and spill, 'the assembly holds no usage notes'
    return int(registers[1]), int(spill[1])


def _summarize(
    op: str,
    case: Case,
    dtype: torch.dtype,
    target: str,
    device: Device,
    forward: list[Row],
    backward: list[Row],
    torch_kernels: tuple[list[str], list[str]],
) -> Iterator[Summary]:
    """For forward, backward, and both."""
    floors = case.floor_bytes(case.inputs(case.batch, 'meta', dtype))
    limits = case.limits if target == LIMITED and dtype == torch.bfloat16 and case.limits else (None, None)
    for direction, rows, others, floor, limit in (
        ('forward', forward, torch_kernels[0], floors[0], limits[0]),
        ('backward', backward, torch_kernels[1], floors[1], None),
        ('forward+backward', forward + backward, torch_kernels[0] + torch_kernels[1], sum(floors), limits[1]),
    ):
        yield Summary(
            op=op,
            case=case.name,
            shape=case.shape,
            batch=case.batch,
            dtype=_TYPES[dtype],
            target=target,
            direction=direction,
            launches=len(rows),
            torch_kernels=' '.join(others),
            bytes=sum(row.bytes for row in rows),
            floor_bytes=floor,
            issue_over_bytes=sum(issue_seconds(row.work, device) for row in rows) / (floor / device.bandwidth),
            fraction=floor / device.bandwidth / sum(seconds(row.work, device) for row in rows),
            limit=limit,
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m attnzoo.kernels.aot', description=__doc__)
    parser.add_argument('--op', choices=OPS, help='one op; default: all')
    parser.add_argument('--case', default='', help='only cases whose name holds this text')
    parser.add_argument('--target', choices=DEVICES, help='one target; default: all')
    parser.add_argument('--check', action='store_true', help='fail where a shape is above its limit')
    parser.add_argument('--json', type=Path, help='also write rows and summaries to this file')
    arguments = parser.parse_args()
    if arguments.check and arguments.target not in (None, LIMITED):
        parser.error(f'--check: limits are for {LIMITED}, not for --target {arguments.target}')
    rows: list[Row] = []
    summaries: list[Summary] = []
    for op in [arguments.op] if arguments.op else OPS:
        try:
            selected = cases(op, arguments.case)
        except ValueError as error:
            parser.error(f'{error}')
        devices = {arguments.target: DEVICES[arguments.target]} if arguments.target else DEVICES
        found = report(op, selected, devices, workers=os.cpu_count() or 1)
        rows += found.rows
        summaries += found.summaries
    for row in rows:
        about = '~' if row.data_loops else ''
        print(
            f'{row.kernel:44} {row.dtype} {row.target:7} {row.registers:4} registers {row.spill_bytes:5} B spilled '
            f'{row.shared_bytes:6} B shared {row.programs:7} x {row.warps} warps x {about}{row.instructions:.0f} ('
            f'{row.tensor:.0f} tensor, {row.special:.0f} special, {row.memory:.0f} memory), {row.ctas_per_sm} resident '
            f'in {row.waves:.1f} waves, {row.bytes / 1e6:.1f} MB, {row.issue_over_bytes:.2f} of issue '
            f'{"ok" if row.passes else "FAILS":5}  {row.shape}'
        )
    print('\nPredicted, not measured (attnzoo/kernels/_report/model.py has what is assumed):')
    for summary in summaries:
        limit = '' if summary.limit is None else f', limit {summary.limit:.2f} {"ok" if summary.passes else "ABOVE"}'
        print(
            f'{summary.case:36} {summary.dtype} {summary.target:7} {summary.direction:16} {summary.launches} launches '
            f'and {len(summary.torch_kernels.split())} of PyTorch, issue_over_bytes {summary.issue_over_bytes:.2f}, '
            f'{summary.fraction:.2f} of the byte floor{limit}'
        )
    if arguments.json:
        tables = {
            'rows': [asdict(row) | {'passes': row.passes} for row in rows],
            'predictions': [asdict(summary) | {'passes': summary.passes} for summary in summaries],
        }
        arguments.json.write_text(json.dumps(tables, indent=1) + '\n')
    failures = sum(not row.passes for row in rows)
    above = sum(not summary.passes for summary in summaries)
    print(
        f'{len(rows)} launches compiled, {failures} of them spill too much or do not fit; '
        f'{above} shapes above their limits'
    )
    sys.exit(failures > 0 or (arguments.check and above > 0))


if __name__ == '__main__':
    main()
