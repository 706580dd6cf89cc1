"""Pictures and tables of a finished run of a detector, and of a scoring."""

import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from rich.table import Table

from ..console import console, say, show_table
from ..models import ModelSpec
from ..pictures import draw_epochs, writable
from ..run_folder import RunFolder, rows_of_run
from .coco import Coco
from .drawing import draw_objects
from .evaluation import Precision, Scores

_WORDS = {'box_ap': 'box AP', 'box_ap50': 'box AP50', 'mask_ap': 'mask AP', 'mask_ap50': 'mask AP50'}
_LISTED = 20  # classes up to which all of them are listed; of more the best and the worst


def draw(folder: RunFolder, scores: Scores, spec: ModelSpec, samples: Coco) -> None:
    """Draw curves.png, precision_recall.png and detections.png."""
    _draw_curves(folder.curves, folder.read_metrics())
    families, _ = writable(dict(enumerate(spec.classes)))
    with matplotlib.rc_context({'font.family': families}):
        _draw_precision(folder.precision, scores)
        _draw_detections(folder.detections, scores, spec, samples)


def show_summary(folder: RunFolder) -> None:
    """Print the table that ends a run, and where its files are."""
    summary = json.loads(folder.summary.read_text())
    scores = {word: f'{summary[name]:.3f}' for name, word in _WORDS.items() if name in summary}
    show_table(f'{summary["detector"]} on {summary["model"]}', {**scores, **rows_of_run(summary)})
    files = [*folder.pictures, folder.summary, folder.metrics, folder.best]
    say(f'look at {folder.path}: {", ".join(path.name for path in files if path.exists())}')


def in_words(numbers: dict[str, Any]) -> str:
    return '  '.join(f'{word} {numbers[name]:.3f}' for name, word in _WORDS.items() if name in numbers)


def show_scores(title: str, scores: Scores) -> None:
    """Print the average precision by size of the objects and by class."""
    kinds = {'box': scores.box, **({'mask': scores.mask} if scores.mask else {})}
    table = Table(title=title)
    table.add_column('')
    for heading in ('AP', 'AP50', 'AP75', 'AP small', 'AP medium', 'AP large'):
        table.add_column(heading, justify='right')
    for kind, precision in kinds.items():
        sizes = [_shown(precision.sizes[size]) for size in ('small', 'medium', 'large')]
        table.add_row(kind, *(_shown(value) for value in (precision.ap, precision.ap50, precision.ap75)), *sizes)
    console.print(table)
    _show_classes(kinds)
    say(f'{scores.images:,} images, {scores.objects:,} objects, {scores.images_per_second:,.1f} images/s')


def _show_classes(kinds: dict[str, Precision]) -> None:
    table = Table()
    table.add_column('class')
    for kind in kinds:
        for heading in ('AP', 'AP50'):
            table.add_column(f'{kind} {heading}', justify='right')
    classes = kinds['box'].classes
    names = sorted((name for name in classes if classes[name]), key=lambda name: -classes[name][0])  # type: ignore[index]
    some = len(names) > _LISTED
    for name in [*names[: _LISTED // 2], '...', *names[-_LISTED // 2 :]] if some else names:
        row = [kinds[kind].classes.get(name) or (None, None) for kind in kinds]
        table.add_row(name, *('' if some and name == '...' else _shown(value) for pair in row for value in pair))
    console.print(table)
    if absent := [name for name in classes if not classes[name]]:
        say(f'{len(absent)} classes have no object here')


def _shown(value: float | None) -> str:
    return 'none' if value is None else f'{value:.3f}'


def _draw_curves(path: Path, metrics: list[dict[str, Any]]) -> None:
    figure = Figure(figsize=(15, 4.2), layout='constrained')
    losses, precision, rate = figure.subplots(1, 3)
    draw_epochs(losses, metrics, {'train_loss': ''})
    losses.set(title='Training loss', ylabel='sum of the losses')
    draw_epochs(precision, metrics, {name: word for name, word in _WORDS.items() if name in metrics[0]})
    best = max(line['box_ap'] for line in metrics)
    precision.set(title=f'Held-out average precision (best box AP: {best:.3f})', ylabel='average precision')
    precision.set_ylim(0, 1)
    draw_epochs(rate, metrics, {'lr': ''}, color='tab:green')
    rate.set(title='Learning rate', ylabel='learning rate')
    figure.savefig(path, dpi=110)


def _draw_precision(path: Path, scores: Scores) -> None:
    kinds = {'Boxes': scores.box, **({'Masks': scores.mask} if scores.mask else {})}
    figure = Figure(figsize=(5.5 * len(kinds), 4.6), layout='constrained')
    for axes, (kind, precision) in zip(figure.subplots(1, len(kinds), squeeze=False).flat, kinds.items(), strict=True):
        for overlap, values in precision.curve.items():
            axes.plot([index / 100 for index in range(101)], values, label=f'overlap (IoU) {overlap:g}')
        axes.set(title=f'{kind}: AP {precision.ap:.3f}, AP50 {precision.ap50:.3f}', xlim=(0, 1), ylim=(0, 1.02))
        axes.set(xlabel='recall', ylabel='precision, mean of the classes')
        axes.legend(loc='lower left')
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def _draw_detections(path: Path, scores: Scores, spec: ModelSpec, samples: Coco) -> None:
    columns = min(4, len(scores.shown))
    rows = -(-len(scores.shown) // columns)
    figure = Figure(figsize=(4 * columns, 4.2 * rows + 0.5), layout='constrained')
    figure.suptitle('Held-out images: what was found, in colours, and what is there, as dashed white boxes')
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis('off')
    for axes, shown in zip(grid.flat, scores.shown, strict=False):
        image = Image.fromarray((shown.image.permute(1, 2, 0).numpy() * 255).round().astype('uint8'))
        picture = draw_objects(image, shown.found, spec.classes)
        factor = picture.width / image.width
        axes.imshow(picture)
        for x1, y1, x2, y2 in samples.objects[shown.item].boxes:
            corner, width, height = (x1 * factor, y1 * factor), (x2 - x1) * factor, (y2 - y1) * factor
            axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor='white', linestyle='--', linewidth=1))
        axes.set_title(samples.pictures[shown.item].file[-30:], fontsize=9, parse_math=False)
    figure.savefig(path, dpi=80)
