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
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attnzoo.kernels import aggregated_attention, channel_attention, conv_glu, depthwise_conv, patch_conv
from attnzoo.kernels._measure import interleave, peak_bytes

CPU = torch.device('cpu')
Function = Callable[..., Tensor]


class Case(NamedTuple):
    """Two forms of an op, and what both take."""

    ours: Function
    theirs: Function
    projected: list[Tensor]  # maps that a linear layer puts out, so that autocast gives them in bf16
    others: list[Tensor]


def parameters(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape).mul_(shape[-1] ** -0.5 if len(shape) > 1 else 0.1) for shape in shapes]


def aggregated(batch: int, size: int, heads: int, pooled: int) -> Case:
    channels, neighbours = 24 * heads, 9

    def ours(*arguments: Tensor) -> Tensor:
        return aggregated_attention(*arguments, num_heads=heads)

    def official(
        q: Tensor,
        kv: Tensor,
        pool_kv: Tensor,
        temperature: Tensor,
        query_embedding: Tensor,
        local_bias: Tensor,
        pool_bias: Tensor,
        tokens: Tensor,
        token_bias: Tensor,
    ) -> Tensor:
        """All neighbours of all positions copied side by side by `unfold`, keys and values, then attended to."""

        def by_head(x: Tensor) -> Tensor:  # [B, N, H * W, d]
            return x.flatten(1, 2).unflatten(2, (-1, 24)).transpose(1, 2)

        def unfold(x: Tensor) -> Tensor:
            return F.unfold(x, kernel_size=3, padding=1)

        inside = unfold(torch.ones(1, 1, size, size)).view(neighbours, -1).T  # [H * W, 9]
        scale = F.softplus(temperature) * (inside.sum(1, keepdim=True) + pool_bias.shape[2]).log()
        unit_q = F.normalize(by_head(q), dim=-1)
        scaled_q = (unit_q + query_embedding) * scale
        k, v = kv.chunk(2, -1)
        k = F.normalize(by_head(k), dim=-1).transpose(1, 2).flatten(2)
        around = torch.cat([k, v.flatten(1, 2)], 2).transpose(1, 2).unflatten(2, (size, size))
        around = unfold(around).view(batch, 2 * heads, 24, neighbours, -1).permute(0, 1, 4, 2, 3)
        around_k, around_v = around.chunk(2, 1)  # [B, N, H * W, d, 9]
        local = (scaled_q.unsqueeze(-2) @ around_k).squeeze(-2)
        local = (local + local_bias.unsqueeze(1)).masked_fill(inside == 0, float('-inf'))
        pool_k, pool_v = pool_kv.chunk(2, -1)
        pool = scaled_q @ F.normalize(by_head(pool_k), dim=-1).mT + pool_bias
        weights = torch.cat([local, pool], -1).softmax(-1)
        local, pool = weights.split([neighbours, pool_bias.shape[2]], -1)
        local = unit_q @ tokens + token_bias + local
        out = (local.unsqueeze(-2) @ around_v.mT).squeeze(-2) + pool @ by_head(pool_v)
        return out.transpose(1, 2).reshape(batch, size, size, channels)

    maps = [torch.randn(batch, n, n, c) for n, c in ((size, channels), (size, 2 * channels), (pooled, 2 * channels))]
    learned = parameters(
        (heads, 1, 1), (heads, 1, 24), (heads, 9), (heads, size**2, pooled**2), (heads, 24, 9), (heads, 1, 9)
    )
    return Case(ours, official, maps, learned)


def glu(batch: int, size: int, channels: int, hidden: int) -> Case:
    def official(
        x: Tensor,
        fc1_weight: Tensor,
        conv_weight: Tensor,
        fc2_weight: Tensor,
        fc1_bias: Tensor,
        conv_bias: Tensor,
        fc2_bias: Tensor,
    ) -> Tensor:
        """One product for both halves, and the gate copied to a channels-first map for its convolution."""
        gate, value = F.linear(x.flatten(1, 2), fc1_weight, fc1_bias).chunk(2, -1)
        gate = gate.transpose(1, 2).view(batch, hidden, size, size).contiguous()
        gate = F.conv2d(gate, conv_weight, conv_bias, padding=1, groups=hidden).flatten(2).transpose(1, 2)
        return F.linear(F.gelu(gate) * value, fc2_weight, fc2_bias).view(x.shape)

    x = torch.randn(batch, size, size, channels)
    weights = parameters((2 * hidden, channels), (hidden, 1, 3, 3), (channels, hidden), (2 * hidden,), (hidden,))
    return Case(conv_glu, official, [], [x, *weights, *parameters((channels,))])


def channels_of_groups(batch: int, size: int, heads: int) -> Case:
    channels = 32 * heads

    def ours(qkv: Tensor) -> Tensor:
        return channel_attention(qkv, num_heads=heads)

    def timm(qkv: Tensor) -> Tensor:
        q, k, v = qkv.reshape(batch, size**2, 3, heads, 32).permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((k * 32**-0.5).transpose(-1, -2) @ v).softmax(-1)
        out = (weights @ q.transpose(-1, -2)).transpose(-1, -2)
        return out.transpose(1, 2).reshape(batch, size, size, channels)

    return Case(ours, timm, [torch.randn(batch, size, size, 3 * channels)], [])


def depthwise(batch: int, size: int, channels: int, kernel: int) -> Case:
    def torch_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=kernel // 2, groups=channels)
        return out.permute(0, 2, 3, 1)

    x = torch.randn(batch, size, size, channels)
    return Case(depthwise_conv, torch_conv, [], [x, *parameters((channels, 1, kernel, kernel), (channels,))])


def patches(batch: int, size: int, channels: int, kernel: int) -> Case:
    def torch_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, 4, (kernel - 4) // 2)

    x = torch.randn(batch, 3, size, size)
    return Case(patch_conv, torch_conv, [], [x, *parameters((channels, 3, kernel, kernel), (channels,))])


CASES: dict[str, Callable[[int], Case]] = {
    'aggregated_attention, TransNeXt-T stage 1': lambda batch: aggregated(batch, 56, 3, 7),
    'aggregated_attention, TransNeXt-T stage 2': lambda batch: aggregated(batch, 28, 6, 7),
    'aggregated_attention, TransNeXt-T stage 3': lambda batch: aggregated(batch, 14, 12, 7),
    'conv_glu, TransNeXt-T stage 1': lambda batch: glu(batch, 56, 72, 384),
    'conv_glu, TransNeXt-T stage 3': lambda batch: glu(batch, 14, 288, 768),
    'channel_attention, DaViT-T stage 1': lambda batch: channels_of_groups(batch, 56, 3),
    'channel_attention, DaViT-T stage 3': lambda batch: channels_of_groups(batch, 14, 12),
    'depthwise_conv 3x3, 56 x 56 x 64': lambda batch: depthwise(batch, 56, 64, 3),
    'depthwise_conv 5x5, 56 x 56 x 64': lambda batch: depthwise(batch, 56, 64, 5),
    'depthwise_conv 5x5, 14 x 14 x 256': lambda batch: depthwise(batch, 14, 256, 5),
    'depthwise_conv 7x7, 56 x 56 x 64': lambda batch: depthwise(batch, 56, 64, 7),
    'patch_conv 16x16, CrossFormer-S stem': lambda batch: patches(batch, 224, 12, 16),
    'patch_conv 32x32, CrossFormer-S stem': lambda batch: patches(batch, 224, 12, 32),
}


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
