"""Window attention on a CPU against timm's own: Swin's, plain and shifted, and MaxViT's block and grid attention.

    python benchmarks/window_attention_cpu.py --json benchmarks/results/window_attention_cpu.json

Both sides are the whole attention branch of timm's block (shift, partition, qkv, attention, projection, and back) with
the same weights, in one process and in turn: the median ratio of the pairs' times with its 95 % interval. Memory is the
peak of live tensor bytes above parameters and inputs. Run it on a quiet machine.
"""

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from timm.models.maxxvit import MaxxVitTransformerCfg, PartitionAttentionCl
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from attnzoo.kernels import window_attention
from attnzoo.kernels._measure import interleave, peak_bytes

CPU = torch.device('cpu')
Branch = Callable[[Tensor], Tensor]


def swin(size: int, channels: int, heads: int, shift: int) -> tuple[nn.Module, Branch, Branch]:
    """The parameters, timm's branch and ours."""
    block = SwinTransformerBlock(channels, (size, size), heads, window_size=7, shift_size=shift)
    layer = block.attn

    def ours(x: Tensor) -> Tensor:
        attended = window_attention(
            layer.qkv(x),
            num_heads=heads,
            window=(7, 7),
            shift=(shift, shift),
            bias=layer.relative_position_bias_table,
            bias_index=layer.relative_position_index,
        )
        return layer.proj(attended)

    return layer, block._attn, ours


def maxvit(size: int, channels: int, partition: str) -> tuple[nn.Module, Branch, Branch]:
    config = MaxxVitTransformerCfg(window_size=(7, 7), grid_size=(7, 7), head_first=False, rel_pos_type='bias_tf')
    block = PartitionAttentionCl(channels, 'grid' if partition == 'grid' else 'block', config)
    layer = block.attn

    def ours(x: Tensor) -> Tensor:
        attended = window_attention(
            layer.qkv(x),
            num_heads=layer.num_heads,
            window=(7, 7),
            partition=partition,
            bias=layer.rel_pos.get_bias(),
        )
        return layer.proj(attended)

    return layer, block._partition_attn, ours


CASES = {
    'Swin-T stage 1': (56, 96, lambda: swin(56, 96, 3, 0)),
    'Swin-T stage 1, shifted': (56, 96, lambda: swin(56, 96, 3, 3)),
    'Swin-T stage 3': (14, 384, lambda: swin(14, 384, 12, 0)),
    'Swin-T stage 3, shifted': (14, 384, lambda: swin(14, 384, 12, 3)),
    'MaxViT-T stage 1, block': (56, 64, lambda: maxvit(56, 64, 'window')),
    'MaxViT-T stage 1, grid': (56, 64, lambda: maxvit(56, 64, 'grid')),
    'MaxViT-T stage 3, block': (14, 256, lambda: maxvit(14, 256, 'window')),
    'MaxViT-T stage 3, grid': (14, 256, lambda: maxvit(14, 256, 'grid')),
}


def step(branch: Branch, layer: nn.Module, x: Tensor, training: bool) -> Callable[[], object]:
    def infer() -> Tensor:
        with torch.no_grad():
            return branch(x)

    def train() -> tuple[Tensor, ...]:
        inputs = x.detach().requires_grad_()
        out = branch(inputs)
        return torch.autograd.grad(out, [inputs, *layer.parameters()], out)

    return train if training else infer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--case', default='', help='only cases whose name holds this text')
    parser.add_argument('--batch', type=int, nargs='+', default=[1, 8])
    parser.add_argument('--pairs', type=int, default=20)
    parser.add_argument('--json', type=Path, help='write the rows to this file, and a Markdown table beside it')
    arguments = parser.parse_args()
    machine = f'{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}'
    rows, lines = [], [
        f'{machine}. Times in ms; ours / timm: median over {arguments.pairs} interleaved pairs and its 95 % interval.',
        '',
        '| case | batch | direction | ours | timm | ours / timm | peak MiB ours | peak MiB timm |',
        '|---|---:|---|---:|---:|---|---:|---:|',
    ]  # fmt: skip
    for name, (size, channels, make) in CASES.items():
        if arguments.case not in name:
            continue
        torch.manual_seed(0)
        layer, theirs, ours = make()
        for batch in arguments.batch:
            x = torch.randn(batch, size, size, channels)
            torch.testing.assert_close(ours(x), theirs(x))
            for direction in ('forward', 'forward+backward'):
                calls = [step(branch, layer, x, direction != 'forward') for branch in (ours, theirs)]
                taken = interleave(*calls, CPU, arguments.pairs)
                memory = [peak_bytes(call, CPU) for call in calls]
                rows.append({
                    'case': name, 'batch': batch, 'direction': direction, 'seconds': taken.seconds,
                    'timm_seconds': taken.other_seconds, 'ratio': taken.ratio._asdict(),
                    'peak_bytes': memory[0], 'timm_peak_bytes': memory[1],
                })  # fmt: skip
                lines.append(
                    f'| {name} | {batch} | {direction} | {taken.seconds * 1e3:.2f} | {taken.other_seconds * 1e3:.2f} | '
                    f'{taken.ratio.median:.2f} ({taken.ratio.low:.2f} to {taken.ratio.high:.2f}) | '
                    f'{memory[0] / 2**20:.1f} | {memory[1] / 2**20:.1f} |'
                )
                print(lines[-1], flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({'machine': machine, 'rows': rows}, indent=1) + '\n')
        arguments.json.with_suffix('.md').write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
    main()
