"""How many images a second each model takes on a CPU, in inference: the figures of the model cards.

    python benchmarks/images_per_second.py --cards
    python benchmarks/images_per_second.py davit_tiny_fused biformer_small

Batch 8 of each model's own input size, float32, random weights; the median of five calls after one that does not
count. With `--cards` all models are measured, the figures go to results/cpu_images_per_second.json, and from there into
the cards: into the front matter, and into the last column of the table of models. Run it on a quiet machine.
"""

import argparse
import json
import platform
import re
import statistics
from pathlib import Path

import timm
import torch
import yaml

import attnzoo  # noqa: F401  (registers the models)
from attnzoo.kernels._measure import timed

RESULTS = Path(__file__).parent / 'results' / 'cpu_images_per_second.json'
CARDS = Path(__file__).parents[1] / 'model_cards'
BATCH = 8
CALLS = 5
COLUMN = 'Images/s, 2 CPU cores'


def on_card(card: Path) -> list[str]:
    return [entry['name'] for entry in yaml.safe_load(card.read_text().split('---')[1])['models']]


def measure(name: str) -> float:
    model = timm.create_model(name).eval()
    images = torch.randn(BATCH, *model.default_cfg['input_size'])
    with torch.no_grad():
        model(images)
        return BATCH / statistics.median(timed(lambda: model(images), images.device) for _ in range(CALLS))


def write_card(card: Path, figures: dict[str, float]) -> None:
    """The figures into the card's facts and its table, whose column is made where there is none."""
    text = re.sub(r', cpu_images_per_second: [^,}]*', '', card.read_text())
    names = '|'.join(map(re.escape, on_card(card)))
    text = re.sub(
        rf'(- \{{name: ({names}),.*)\}}$',
        lambda line: f'{line[1]}, cpu_images_per_second: {figures[line[2]]}}}',
        text,
        flags=re.MULTILINE,
    )
    before, rows, after = re.split(r'((?:^\| .*\n)+)', text, maxsplit=1, flags=re.MULTILINE)
    lines = rows.splitlines()
    if COLUMN in lines[0]:
        lines = [line[: line.rindex('|', 0, -1) + 1] for line in lines]
    cells = [f' {COLUMN} |', ' ---: |', *(f' {figures[re.search("`(.*?)`", line)[1]]} |' for line in lines[2:])]
    card.write_text(before + ''.join(line + cell + '\n' for line, cell in zip(lines, cells, strict=True)) + after)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('models', nargs='*', help='default: all on the model cards')
    parser.add_argument('--cards', action='store_true', help='measure all, write the results and the cards')
    arguments = parser.parse_args()
    if arguments.cards and arguments.models:
        parser.error('models: none with --cards, which measures all')
    cards = sorted(CARDS.glob('*.md'))
    figures = {}
    for name in arguments.models or [name for card in cards for name in on_card(card)]:
        figures[name] = round(measure(name), 1)
        print(name, figures[name], flush=True)
    if arguments.cards:
        machine = f'{platform.machine()} CPU, {torch.get_num_threads()} threads'
        facts = {'machine': machine, 'torch': torch.__version__, 'timm': timm.__version__, 'batch': BATCH}
        RESULTS.write_text(json.dumps({**facts, 'images_per_second': figures}, indent=2) + '\n')
        for card in cards:
            write_card(card, figures)


if __name__ == '__main__':
    main()
