"""How well models use a CPU: their useful work a second, over what the processor's best matrix product does.

    python benchmarks/model_efficiency.py biformer_small davit_tiny --json benchmarks/results/cpu_biformer.json

Efficiency is the GMACs of the OFFICIAL model (never those of our own formulation) times images a second, over the
GMAC/s of a 2048 x 2048 float32 `torch.mm` timed right before and after it, as the best of five such pairs. A backward
counts as two forwards. `NAME:official` runs our model with routed attention and MLP formulated as the authors' code
has them.
Memory is the peak of live tensor bytes above parameters and inputs, and the peak resident size, of a fresh process.
At another `--size HEIGHT WIDTH` memory alone is measured, since the GMACs are of 224 x 224; 800 1344 is what detectors
see.

Run it on a quiet machine: other work falls on both sides of a pair, but not evenly.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import timm
import torch
import yaml
from official_attention import routed_attention

import attnzoo  # noqa: F401  (registers the models)
from attnzoo.blocks import Mlp
from attnzoo.kernels._measure import peak_bytes

ROOT = Path(__file__).parents[1]
TIMM_GMACS = {'davit_tiny': 4.5218, 'swin_tiny_patch4_window7_224': 4.5, 'maxvit_tiny_tf_224': 5.5518}
PAIRS = 5
SIDE = 2048
SIZE = (224, 224)


def official_gmacs(name):
    """Multiply-accumulates of the official model at 224 x 224, in 10^9, as its model card states them."""
    for card in (ROOT / 'model_cards').glob('*.md'):
        for entry in yaml.safe_load(card.read_text().split('---')[1])['models']:
            if entry['name'] == name:
                return entry.get('official_gmacs', entry['gmacs'])
    if name not in TIMM_GMACS:
        raise SystemExit(f'{name}: no model card states its GMACs; known besides: {", ".join(TIMM_GMACS)}')
    return TIMM_GMACS[name]


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def create(name, size):
    """A model for images of a size; some of timm's must know it."""
    if size != SIZE:
        with suppress(TypeError):
            return timm.create_model(name, img_size=size)
    return timm.create_model(name)


def steps(name, batch, size):
    """The forward step and the training step of a model, as functions without arguments."""
    model = create(name, size)
    images = torch.randn(batch, 3, *size)

    def forward():
        with torch.no_grad():
            model.eval()(images)

    def forward_backward():
        model.zero_grad(set_to_none=True)
        model.train()(images).sum().backward()

    return {'forward': forward, 'forward_backward': forward_backward}


def efficiency(step, macs):
    """The best of the pairs: (efficiency, seconds of the step, GMAC/s of the product)."""
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    step(), torch.mm(a, b)
    pairs = []
    for _ in range(PAIRS):
        before = min(seconds(lambda: torch.mm(a, b)) for _ in range(3))
        taken = seconds(step)
        rate = SIDE**3 / min(before, *(seconds(lambda: torch.mm(a, b)) for _ in range(3)))
        pairs.append((macs / taken / rate, taken, rate / 1e9))
    return max(pairs)


def measure(row, batch, size, what):
    """One figure of one row, in this process."""
    name, _, formulation = row.partition(':')
    if formulation == 'official':
        patch('attnzoo.blocks.bi_level.routed_attention', routed_attention).start()
        patch.object(Mlp, 'forward', Mlp.layers).start()
    result = {}
    for direction, step in steps(name, batch, size).items():
        if what == 'memory':
            result[f'{direction}_peak_tensor_bytes'] = peak_bytes(step, torch.device('cpu'))
        else:
            macs = batch * official_gmacs(name) * 1e9 * (1 if direction == 'forward' else 3)
            best, taken, rate = efficiency(step, macs)
            result[f'{direction}_efficiency'] = round(best, 3)
            result[f'{direction}_images_per_second'] = round(batch / taken, 2)
            result[f'{direction}_mm_gmac_per_second'] = round(rate, 1)
    if what == 'memory':
        result['peak_resident_bytes'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('rows', nargs='+', metavar='NAME[:official]')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--size', type=int, nargs=2, default=SIZE, metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--json', type=Path)
    parser.add_argument('--child', choices=('speed', 'memory'), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = tuple(arguments.size)
    if arguments.child:
        print(json.dumps(measure(arguments.rows[0], arguments.batch, size, arguments.child)))
        return
    results = {}
    for row in arguments.rows:
        results[row] = {'gmacs': official_gmacs(row.partition(':')[0])} if size == SIZE else {}
        for what in ('speed', 'memory') if size == SIZE else ('memory',):
            command = [sys.executable, __file__, row, '--batch', str(arguments.batch), '--child', what]
            command += ['--size', *map(str, size)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results[row].update(json.loads(done.stdout.splitlines()[-1]))
        print(row, results[row], flush=True)
    report = {
        'device': f'{platform.machine()} CPU, {torch.get_num_threads()} threads',
        'torch': torch.__version__,
        'timm': timm.__version__,
        'batch': arguments.batch,
        'image_size': size,
        'rows': results,
    }
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2) + '\n')
        print(f'wrote {arguments.json}')


if __name__ == '__main__':
    main()
