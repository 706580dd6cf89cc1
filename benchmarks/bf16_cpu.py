"""What bfloat16 autocast gains over float32 on a CPU, model by model, and what it does to the logits.

    python benchmarks/bf16_cpu.py --pairs 10 --json benchmarks/results/bf16_cpu.json

One model with one set of weights runs both ways in turn: the median ratio of the pairs' times with its 95 % interval.
The deviation is the largest difference of a logit over the largest logit. What can be gained depends on the processor:
the report names the instructions for bfloat16 that it has. Run it on a quiet machine.
"""

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from models_against_timm import step

import attnzoo  # noqa: F401  (registers the models)
from attnzoo.kernels._measure import interleave

CPU = torch.device('cpu')
MODELS = (
    'biformer_small',
    'crossformer_small',
    'davit_tiny_fused',
    'maxvit_tiny_fused',
    'transnext_tiny',
    'davit_tiny',
    'swin_tiny_patch4_window7_224',
)


def under_autocast(call: Callable[[], object]) -> Callable[[], object]:
    def autocast() -> object:
        with torch.autocast('cpu', torch.bfloat16):
            return call()

    return autocast


def instructions() -> str:
    """The instructions for bfloat16 that the processor has."""
    file = Path('/proc/cpuinfo')
    flags = set(file.read_text().split()) if file.exists() else set()
    return ', '.join(sorted(flags & {'amx_bf16', 'avx512_bf16'})) or 'none known'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('models', nargs='*', default=MODELS, help=f'default: {", ".join(MODELS)}')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--pairs', type=int, default=10)
    parser.add_argument('--json', type=Path, help='write the rows to this file')
    arguments = parser.parse_args()
    rows = []
    for name in arguments.models:
        torch.manual_seed(0)
        model, images = timm.create_model(name), torch.randn(arguments.batch, 3, 224, 224)
        for direction in ('forward', 'forward+backward'):
            exact = step(model, images, direction != 'forward')
            half = under_autocast(exact)
            taken = interleave(exact, half, CPU, arguments.pairs)
            row = {
                'model': name, 'direction': direction,
                'seconds': taken.other_seconds, 'float32_seconds': taken.seconds, 'speed_up': taken.ratio._asdict(),
            }  # fmt: skip
            if direction == 'forward':
                logits, rounded = exact(), half()
                row['deviation'] = ((rounded.float() - logits).abs().max() / logits.abs().max()).item()
            rows.append(row)
            print(
                f'{name}, {direction}: bfloat16 {taken.ratio.median:.2f} times as fast as float32 '
                f'({taken.ratio.low:.2f} to {taken.ratio.high:.2f})'
                + (f', logits off by {row["deviation"]:.1e}' if 'deviation' in row else ''),
                flush=True,
            )
    if arguments.json:
        report = {
            'device': f'{platform.machine()} CPU, {torch.get_num_threads()} threads',
            'bfloat16_instructions': instructions(),
            'torch': torch.__version__,
            'timm': timm.__version__,
            'batch': arguments.batch,
            'rows': rows,
        }
        arguments.json.write_text(json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
    main()
