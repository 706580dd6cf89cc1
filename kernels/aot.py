"""Compile every kernel ahead of time, for GPUs that need not be there: `python -m attnzoo.kernels.aot`.

Each op runs forward and backward on meta tensors; the launches that it would make are compiled for every target
and judged by the registers, the spilled and the shared memory that they take.
"""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnzoo.kernels._launch import Launch, Target, recording
from attnzoo.kernels._registry import OPS, Case, cases

TARGETS = {
    'sm_80': Target('cuda', 80, 108),
    'sm_90': Target('cuda', 90, 132),
    'sm_100': Target('cuda', 100, 148),
    'gfx942': Target('hip', 'gfx942', 304),
}
SHARED_LIMIT = {'sm_80': 163 << 10, 'sm_90': 227 << 10, 'sm_100': 227 << 10, 'gfx942': 64 << 10}  # bytes a program
REGISTER_LIMIT = 64 << 10  # of a multiprocessor's register file, which a program must fit in
BATCH = 8

_TYPES = {torch.bfloat16: 'bf16', torch.float16: 'fp16', torch.float32: 'fp32', torch.int64: 'i64', torch.int32: 'i32'}


@dataclass(frozen=True)
class Row:
    """What one kernel takes on one target; sizes in bytes, registers a thread, shared memory a program."""

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

    @property
    def passes(self) -> bool:
        """Fits; and in half precision on NVIDIA, spills nothing."""
        return self.fits and (self.spill_bytes == 0 or self.dtype == 'fp32' or self.target.startswith('gfx'))


def report(op: str, selected: list[Case], targets: list[str], workers: int = 2) -> list[Row]:
    """Compiles the kernels of the cases, in two processes by default: a row for each kernel, dtype and target."""
    jobs: dict[Any, tuple[Any, ...]] = {}
    for case in selected:
        for dtype in (torch.bfloat16, torch.float16, torch.float32) if case.all_dtypes else (torch.bfloat16,):
            for target in targets:
                for direction, launch in launches(case, dtype, TARGETS[target]):
                    job = (op, direction, _TYPES[dtype], case.shape, target, *_source(launch))
                    jobs.setdefault(repr(job), job)
    with ProcessPoolExecutor(workers, mp_context=get_context('spawn')) as pool:
        return list(pool.map(_compile, jobs.values()))


def launches(case: Case, dtype: torch.dtype, target: Target) -> list[tuple[str, Launch]]:
    """The launches of a call and of its backward pass."""
    inputs = case.inputs(BATCH, 'meta', dtype)
    with recording(target) as recorded:
        out = case.function(**inputs, backend='triton')
        forward = len(recorded)
        out.backward(torch.empty_like(out))
    return [('forward' if i < forward else 'backward', launch) for i, launch in enumerate(recorded)]


class _Function(NamedTuple):
    """A function that is passed to a kernel, for another process."""

    module: str
    name: str


def _source(launch: Launch) -> tuple[Any, ...]:
    """Module and name of the kernel, signature, constants, attributes and options: what the compiler is given.

    As Triton's own launcher has it: None and the number 1 are constants, multiples of 16 are known as such.
    """
    from triton.language import constexpr
    from triton.runtime.jit import JITFunction

    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}

    def kind(value: Any, path: tuple[int, ...], constant: bool, specialized: bool) -> Any:
        if isinstance(value, tuple) and not constant:
            return tuple(kind(item, (*path, i), constant, specialized) for i, item in enumerate(value))
        if isinstance(value, constexpr):
            value, constant = value.value, True
        specialized = specialized and isinstance(value, int)
        if constant or value is None or (specialized and value == 1):
            constants[path] = (
                _Function(value.fn.__module__, value.__name__) if isinstance(value, JITFunction) else value
            )
            return 'constexpr'
        if isinstance(value, Tensor) or (specialized and value % 16 == 0):
            attributes[path] = [['tt.divisibility', 16]]
        if isinstance(value, Tensor):
            return '*' + _TYPES[value.dtype]
        return 'fp32' if isinstance(value, float) else 'i32' if abs(value) < 2**31 else 'i64'

    for i, parameter in enumerate(launch.kernel.params):
        value, specialized = launch.arguments[parameter.name], not parameter.do_not_specialize
        signature[parameter.name] = kind(value, (i,), parameter.is_constexpr, specialized)
    function = launch.kernel.fn
    return function.__module__, function.__name__, signature, constants, attributes, launch.options


def _compile(job: tuple[Any, ...]) -> Row:
    op, direction, dtype, shape, target, module, name, signature, constants, attributes, options = job
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {
        path: getattr(importlib.import_module(value.module), value.name) if isinstance(value, _Function) else value
        for path, value in constants.items()
    }
    kernel = getattr(importlib.import_module(module), name)
    backend, arch, _ = TARGETS[target]
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget(backend, arch, 64 if backend == 'hip' else 32),
        options=options,
    )
    registers, spill = _cuda_usage(compiled.asm['cubin']) if backend == 'cuda' else _hip_usage(compiled.asm['amdgcn'])
    shared = compiled.metadata.shared
    threads = options['num_warps'] * (64 if backend == 'hip' else 32)
    fits = shared <= SHARED_LIMIT[target] and (backend == 'hip' or registers * threads <= REGISTER_LIMIT)
    return Row(op, name.strip('_'), direction, dtype, shape, target, registers, spill, shared, fits)


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


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m attnzoo.kernels.aot', description=__doc__)
    parser.add_argument('--op', choices=OPS, help='one op; default: all')
    parser.add_argument('--json', type=Path, help='also write the rows to this file')
    arguments = parser.parse_args()
    rows = [
        row
        for op in ([arguments.op] if arguments.op else OPS)
        for row in report(op, list(cases(op)), list(TARGETS), workers=os.cpu_count() or 1)
    ]
    for row in rows:
        print(
            f'{row.kernel:44} {row.dtype} {row.target:7} {row.registers:4} registers {row.spill_bytes:5} B spilled '
            f'{row.shared_bytes:6} B shared  {"ok" if row.passes else "FAILS":5}  {row.shape}'
        )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) | {'passes': row.passes} for row in rows], indent=1) + '\n')
    failures = sum(not row.passes for row in rows)
    print(f'{len(rows)} kernels compiled, {failures} of them spill or do not fit')
    sys.exit(failures > 0)


if __name__ == '__main__':
    main()
