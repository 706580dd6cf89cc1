"""Pictures and tables of a finished run."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ..console import say, show_table
from ..models import ModelSpec
from ..pictures import draw_epochs, writable
from ..run_folder import RunFolder, rows_of_run
from .evaluation import Mistake, Scores

NUMBERED_CELLS = 20  # classes up to which the cells of a confusion matrix carry their counts
NAMED_TICKS = 40  # classes up to which its axes carry their names


def draw(folder: RunFolder, scores: Scores, spec: ModelSpec) -> None:
    """Draw curves.png, confusion_matrix.png and wrong_predictions.png."""
    _draw_curves(folder.curves, folder.read_metrics())
    shown = {label for mistake in scores.mistakes for label in (mistake.label, mistake.predicted)}
    if spec.num_classes <= NAMED_TICKS:
        shown.update(range(spec.num_classes))
    families, names = writable({index: spec.class_name(index) for index in sorted(shown)})
    with matplotlib.rc_context({'font.family': families}):
        if scores.confusion is not None:
            _draw_confusion(folder.confusion, scores.confusion.numpy(), names)
        _draw_mistakes(folder.wrong, scores, spec, names)


def show_summary(folder: RunFolder) -> None:
    """Print the table that ends a run, and where its files are."""
    summary = json.loads(folder.summary.read_text())
    scores = {'top-1': f'{summary["top1"]:.2f} %', 'top-5': f'{summary["top5"]:.2f} %'}
    show_table(_title(summary), {**scores, **rows_of_run(summary)})
    files = [folder.curves, folder.confusion, folder.wrong, folder.summary, folder.metrics, folder.best]
    say(f'look at {folder.path}: {", ".join(path.name for path in files if path.exists())}')


def _title(summary: dict[str, Any]) -> str:
    own, published = summary['parameters'], summary['default_parameters']
    if published is None or own == published:
        return summary['model']
    return f"{summary['model']}, {own / 1e6:.1f} M of {published / 1e6:.1f} M parameters (recipe's kwargs)"


def _draw_curves(path: Path, metrics: list[dict[str, Any]]) -> None:
    figure = Figure(figsize=(15, 4.2), layout='constrained')
    losses, accuracy, rate = figure.subplots(1, 3)
    draw_epochs(losses, metrics, {'train_loss': 'training (augmented)', 'loss': 'held-out'})
    losses.set(title='Loss', ylabel='cross-entropy (nats)')
    draw_epochs(accuracy, metrics, {'top1': 'top-1', 'top5': 'top-5'}, 'lower right')
    best = max(metrics, key=lambda line: line['top1'])
    accuracy.set(title=f'Held-out accuracy (best top-1: {best["top1"]:.2f} %)', ylabel='accuracy (%)')
    draw_epochs(rate, metrics, {'lr': ''}, color='tab:green')
    rate.set(title='Learning rate', ylabel='learning rate')
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
