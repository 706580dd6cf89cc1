"""Our models on a CPU against timm's own classes of the same family, with the same weights.

    python benchmarks/models_against_timm.py --pairs 20 --json benchmarks/results/models_against_timm.json

Both models are in one process and run in turn: the median ratio of the pairs' times with its 95 % interval. Memory is
the peak of live tensor bytes above parameters and inputs. Run it on a quiet machine.
"""

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

import attnzoo  # noqa: F401  (registers the models)
from attnzoo.backbones import checkpoint_filter
from attnzoo.kernels._measure import interleave, peak_bytes

CPU = torch.device('cpu')
PAIRS = {
    'maxvit_tiny_fused': 'maxvit_tiny_tf_224',
    'maxvit_small_fused': 'maxvit_small_tf_224',
    'davit_tiny_fused': 'davit_tiny',
    'davit_small_fused': 'davit_small',
}


def step(model: nn.Module, images: Tensor, training: bool) -> Callable[[], object]:
    def infer() -> Tensor:
        with torch.no_grad():
            return model.eval()(images)

    def train() -> None:
        model.zero_grad(set_to_none=True)
        model.train()(images).sum().backward()

    return train if training else infer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('models', nargs='*', help=f'some of {", ".join(PAIRS)}; default: all')
    parser.add_argument('--batch', type=int, nargs='+', default=[1, 8])
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--pairs', type=int, default=20)
    parser.add_argument('--bf16', action='store_true', help='under autocast')
    parser.add_argument('--json', type=Path, help='write the rows to this file')
    arguments = parser.parse_args()
    if unknown := set(arguments.models) - PAIRS.keys():
        raise SystemExit(f'{", ".join(sorted(unknown))}: expected some of {", ".join(PAIRS)}')
    rows = []
    for name in arguments.models or PAIRS:
        torch.manual_seed(0)
        ours, theirs = timm.create_model(name).eval(), timm.create_model(PAIRS[name]).eval()
        ours.load_state_dict(checkpoint_filter(ours)(theirs.state_dict(), ours))
        for batch in arguments.batch:
            images = torch.randn(batch, 3, arguments.size, arguments.size)
            with torch.no_grad():
                torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-3, atol=1e-4)
            with torch.autocast('cpu', torch.bfloat16, enabled=arguments.bf16):
                for direction in ('forward', 'forward+backward'):
                    calls = [step(model, images, direction != 'forward') for model in (ours, theirs)]
                    taken = interleave(*calls, CPU, arguments.pairs)
                    memory = [peak_bytes(call, CPU) for call in calls]
                    rows.append({
                        'model': name, 'timm_model': PAIRS[name], 'batch': batch, 'direction': direction,
                        'seconds': taken.seconds, 'timm_seconds': taken.other_seconds,
                        'ratio': taken.ratio._asdict(), 'peak_bytes': memory[0], 'timm_peak_bytes': memory[1],
                    })  # fmt: skip
                    print(
                        f'{name} / {PAIRS[name]}, batch {batch}, {direction}: '
                        f'{taken.ratio.median:.2f} ({taken.ratio.low:.2f} to {taken.ratio.high:.2f}) of the time, '
                        f'{memory[0] / 2**20:.0f} of {memory[1] / 2**20:.0f} MiB',
                        flush=True,
                    )
    if arguments.json:
        report = {
            'device': f'{platform.machine()} CPU, {torch.get_num_threads()} threads',
            'torch': torch.__version__,
            'timm': timm.__version__,
            'image_size': arguments.size,
            'dtype': 'bfloat16 by autocast' if arguments.bf16 else 'float32',
            'rows': rows,
        }
        arguments.json.write_text(json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
    main()
