"""Pictures and tables of a finished run."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ..console import say, show_table
from ..models import ModelSpec
from ..run_folder import RunFolder
from .evaluation import Mistake, Scores

NUMBERED_CELLS = 20  # classes up to which the cells of a confusion matrix carry their counts
NAMED_TICKS = 40  # classes up to which its axes carry their names
LAST_RESORT = 'Last Resort'  # matplotlib's font whose glyphs are boxes


def draw(folder: RunFolder, scores: Scores, spec: ModelSpec) -> None:
    """Draw curves.png, confusion_matrix.png and wrong_predictions.png."""
    _draw_curves(folder.curves, folder.read_metrics())
    shown = {label for mistake in scores.mistakes for label in (mistake.label, mistake.predicted)}
    if spec.num_classes <= NAMED_TICKS:
        shown.update(range(spec.num_classes))
    families, names = _writable({index: spec.class_name(index) for index in sorted(shown)})
    with matplotlib.rc_context({'font.family': families}):
        if scores.confusion is not None:
            _draw_confusion(folder.confusion, scores.confusion.numpy(), names)
        _draw_mistakes(folder.wrong, scores, spec, names)


def _writable(names: dict[int, str]) -> tuple[list[str], dict[int, str]]:
    """Font families with the glyphs of these class names, and the names: a number where no installed font has them."""
    families = list(matplotlib.rcParams['font.sans-serif'][:1])
    missing = _without_glyph(families[0], {letter for name in names.values() for letter in name})
    for family in sorted({font.name for font in fontManager.ttflist}) if missing else ():
        left = missing if family.startswith(LAST_RESORT) else _without_glyph(family, missing)
        if left != missing:
            families.append(family)
            missing = left
    return families, {index: f'class {index}' if missing & set(name) else name for index, name in names.items()}


def _without_glyph(family: str, letters: set[str]) -> set[str]:
    try:
        known = get_font(findfont(FontProperties(family=family), fallback_to_default=False)).get_charmap()
    except (OSError, RuntimeError, ValueError):  # a font that matplotlib cannot read, such as one of coloured pictures
        return letters
    return {letter for letter in letters if ord(letter) not in known}


def show_summary(folder: RunFolder) -> None:
    """Print the table that ends a run, and where its files are."""
    summary = json.loads(folder.summary.read_text())
    rows = {
        'top-1': f'{summary["top1"]:.2f} %',
        'top-5': f'{summary["top5"]:.2f} %',
        'held-out images': f'{summary["images"]:,}',
        'best epoch': f'{summary["best_epoch"]} of {summary["epochs"]}',
        'parameters': f'{summary["parameters"]:,}',
        'training speed': f'{summary["images_per_second"]:,.0f} images/s',
        'time': f'{summary["seconds"]:.0f} s',
        'peak memory': f'{summary["peak_memory_bytes"] / 2**20:,.0f} MiB',
    }
    if summary['bad_images']:
        rows['unreadable images'] = str(len(summary['bad_images']))
    show_table(_title(summary), rows)
    files = [folder.curves, folder.confusion, folder.wrong, folder.summary, folder.metrics, folder.best]
    say(f'look at {folder.path}: {", ".join(path.name for path in files if path.exists())}')


def _title(summary: dict[str, Any]) -> str:
    own, published = summary['parameters'], summary['default_parameters']
    if published is None or own == published:
        return summary['model']
    return f"{summary['model']}, {own / 1e6:.1f} M of {published / 1e6:.1f} M parameters (recipe's kwargs)"


def _draw_curves(path: Path, metrics: list[dict[str, Any]]) -> None:
    epochs = [line['epoch'] for line in metrics]
    figure = Figure(figsize=(15, 4.2), layout='constrained')
    losses, accuracy, rate = figure.subplots(1, 3)
    marker = '.' if len(epochs) < 30 else None
    losses.plot(epochs, [line['train_loss'] for line in metrics], marker=marker, label='training (augmented)')
    losses.plot(epochs, [line['loss'] for line in metrics], marker=marker, label='held-out')
    losses.set(title='Loss', xlabel='epoch', ylabel='cross-entropy (nats)')
    losses.legend()
    for name, label in (('top1', 'top-1'), ('top5', 'top-5')):
        accuracy.plot(epochs, [line[name] for line in metrics], marker=marker, label=label)
    best = max(metrics, key=lambda line: line['top1'])
    accuracy.set(title=f'Held-out accuracy (best top-1: {best["top1"]:.2f} %)', xlabel='epoch', ylabel='accuracy (%)')
    accuracy.legend(loc='lower right')
    rate.plot(epochs, [line['lr'] for line in metrics], marker=marker, color='tab:green')
    rate.set(title='Learning rate', xlabel='epoch', ylabel='learning rate')
    for axes in (losses, accuracy, rate):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(path, dpi=110)


def _draw_confusion(path: Path, counts: np.ndarray, names: dict[int, str]) -> None:
    classes = len(counts)
    side = min(12.0, 4 + 0.35 * classes)
    figure = Figure(figsize=(side + 1, side), layout='constrained')
    axes = figure.subplots()
    # Rows are shares of their class: classes differ in size, and mistakes would drown beside the diagonal.
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap='Blues', vmin=0, vmax=100)
    figure.colorbar(image, label='share of the true class (%)', shrink=0.8)
    axes.set(title='Confusion matrix of the held-out images', xlabel='predicted class', ylabel='true class')
    if classes <= NAMED_TICKS:
        ticks = [names[index] for index in range(classes)]
        turned = max(map(len, ticks)) > 3
        # A dollar sign in a name begins no formula.
        axes.set_xticks(range(classes), ticks, rotation=90 if turned else 0, parse_math=False)
        axes.set_yticks(range(classes), ticks, parse_math=False)
    if classes <= NUMBERED_CELLS:
        for row, column in zip(*counts.nonzero(), strict=True):
            color = 'white' if shares[row, column] > 50 else 'black'
            axes.text(column, row, str(counts[row, column]), ha='center', va='center', color=color)
    figure.savefig(path, dpi=110)


def _draw_mistakes(path: Path, scores: Scores, spec: ModelSpec, names: dict[int, str]) -> None:
    shown = scores.mistakes
    columns = max(1, min(5, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(max(2.1 * columns, 6), 2.5 * rows + 0.6), layout='constrained')
    grid = figure.subplots(rows, columns, squeeze=False)
    wrong = round(scores.images * (100 - scores.top1) / 100)
    figure.suptitle(f'{wrong} of {scores.images} held-out images predicted wrongly, the most confident first')
    for axes in grid.flat:
        axes.axis('off')
    for axes, mistake in zip(grid.flat, shown, strict=False):
        axes.imshow(_to_pixels(mistake, spec), interpolation='nearest', cmap='gray', vmin=0, vmax=1)
        predicted, label = names[mistake.predicted][:18], names[mistake.label][:18]
        title = f'predicted {predicted} ({100 * mistake.confidence:.0f} %)\ntrue {label}'
        axes.set_title(title, fontsize=9, parse_math=False)
    figure.savefig(path, dpi=110)


def _to_pixels(mistake: Mistake, spec: ModelSpec) -> np.ndarray:
    image: Tensor = mistake.image.permute(1, 2, 0)
    return (image.numpy() * np.asarray(spec.data['std']) + np.asarray(spec.data['mean'])).clip(0, 1)
