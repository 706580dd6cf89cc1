"""Pictures and tables of a finished run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .console import say, show_table
from .evaluation import Mistake, Scores
from .models import ModelSpec
from .run_folder import RunFolder

NUMBERED_CELLS = 20  # classes up to which the cells of a confusion matrix carry their counts
NAMED_TICKS = 40  # classes up to which its axes carry their names


def draw(folder: RunFolder, scores: Scores, spec: ModelSpec) -> None:
    """Draw curves.png, confusion_matrix.png and wrong_predictions.png."""
    _draw_curves(folder.curves, folder.read_metrics())
    if scores.confusion is not None:
        _draw_confusion(folder.confusion, scores.confusion.numpy(), spec)
    _draw_mistakes(folder.wrong, scores, spec)


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
    show_table(summary['model'], rows)
    files = [folder.curves, folder.confusion, folder.wrong, folder.summary, folder.metrics, folder.best]
    say(f'look at {folder.path}: {", ".join(path.name for path in files if path.exists())}')


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


def _draw_confusion(path: Path, counts: np.ndarray, spec: ModelSpec) -> None:
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
        names = [spec.class_name(index) for index in range(classes)]
        turned = max(map(len, names)) > 3
        axes.set_xticks(range(classes), names, rotation=90 if turned else 0)
        axes.set_yticks(range(classes), names)
    if classes <= NUMBERED_CELLS:
        for row, column in zip(*counts.nonzero(), strict=True):
            color = 'white' if shares[row, column] > 50 else 'black'
            axes.text(column, row, str(counts[row, column]), ha='center', va='center', color=color)
    figure.savefig(path, dpi=110)


def _draw_mistakes(path: Path, scores: Scores, spec: ModelSpec) -> None:
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
        axes.imshow(_to_pixels(mistake, spec), interpolation='nearest')
        predicted, label = spec.class_name(mistake.predicted)[:18], spec.class_name(mistake.label)[:18]
        axes.set_title(f'predicted {predicted} ({100 * mistake.confidence:.0f} %)\ntrue {label}', fontsize=9)
    figure.savefig(path, dpi=110)


def _to_pixels(mistake: Mistake, spec: ModelSpec) -> np.ndarray:
    image: Tensor = mistake.image.permute(1, 2, 0)
    return (image.numpy() * np.asarray(spec.data['std']) + np.asarray(spec.data['mean'])).clip(0, 1)
