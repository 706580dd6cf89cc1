"""Ops on a CPU against the formulations that the published code of their models uses, or timm.

    python benchmarks/ops_cpu.py --json benchmarks/results/ops_cpu.json

Both sides compute the same function of the same tensors, in one process and in turn: the median ratio of the pairs'
times with its 95 % interval. Memory is the peak of live tensor bytes above the arguments. bf16 is autocast, as models
are run with it. Run it on a quiet machine.
"""

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from ops import CASES
from ops.case import Case, Function
from torch import Tensor

from attnzoo.kernels._measure import interleave, peak_bytes

CPU = torch.device('cpu')


def step(case: Case, function: Function, bf16: bool, training: bool) -> Callable[[], object]:
    arguments = [*(x.to(torch.bfloat16) if bf16 else x for x in case.projected), *case.others]

    def infer() -> Tensor:
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=bf16):
            return function(*arguments)

    def train() -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in arguments]
        with torch.autocast('cpu', torch.bfloat16, enabled=bf16):
            out = function(*leaves)
        return torch.autograd.grad(out, leaves, out.detach())

    return train if training else infer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--case', default='', help='only cases whose name holds this text')
    parser.add_argument('--batch', type=int, nargs='+', default=[1, 8])
    parser.add_argument('--pairs', type=int, default=20)
    parser.add_argument('--threads', type=int, help='threads of PyTorch; its own choice by default')
    parser.add_argument('--json', type=Path, help='write the rows to this file, and a Markdown table beside it')
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    machine = f'{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}'
    rows, lines = [], [
        f'{machine}. Times in ms; theirs / ours: median over {options.pairs} interleaved pairs and its 95 % interval.',
        '',
        '| op | batch | type | direction | ours | theirs | theirs / ours | peak MiB ours | peak MiB theirs |',
        '|---|---:|---|---|---:|---:|---|---:|---:|',
    ]  # fmt: skip
    for name, make in CASES.items():
        if options.case not in name:
            continue
        for batch in options.batch:
            torch.manual_seed(0)
            case = make(batch)
            for kind in ('fp32', 'bf16'):
                for direction in ('forward', 'forward+backward'):
                    how = kind == 'bf16', direction != 'forward'
                    calls = [step(case, function, *how) for function in (case.theirs, case.ours)]
                    taken = interleave(*calls, CPU, options.pairs)
                    memory = [peak_bytes(call, CPU) for call in calls]
                    rows.append({
                        'case': name, 'batch': batch, 'type': kind, 'direction': direction,
                        'seconds': taken.other_seconds, 'their_seconds': taken.seconds,
                        'speed_up': taken.ratio._asdict(), 'peak_bytes': memory[1], 'their_peak_bytes': memory[0],
                    })  # fmt: skip
                    lines.append(
                        f'| {name} | {batch} | {kind} | {direction} | {taken.other_seconds * 1e3:.2f} '
                        f'| {taken.seconds * 1e3:.2f} | {taken.ratio.median:.2f} ({taken.ratio.low:.2f} to '
                        f'{taken.ratio.high:.2f}) | {memory[1] / 2**20:.1f} | {memory[0] / 2**20:.1f} |'
                    )
                    print(lines[-1], flush=True)
    if options.json:
        options.json.write_text(json.dumps({'machine': machine, 'rows': rows}, indent=1) + '\n')
        options.json.with_suffix('.md').write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
    main()
