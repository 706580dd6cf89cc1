"""What the pictures of all tasks share: curves over the epochs, fonts for the names of classes."""

from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.ticker import MaxNLocator

LAST_RESORT = 'Last Resort'  # matplotlib's font whose glyphs are boxes


def draw_epochs(
    axes: Axes, metrics: list[dict[str, Any]], labels: dict[str, str], legend: str = 'best', **style: Any
) -> None:
    """Draw numbers of each epoch.

    Args:
        labels: what the numbers are called, by their name in the metrics; without names there is no legend.
    """
    epochs = [line['epoch'] for line in metrics]
    for name, label in labels.items():
        marker = '.' if len(epochs) < 30 else None
        axes.plot(epochs, [line[name] for line in metrics], marker=marker, label=label, **style)
    if any(labels.values()):
        axes.legend(loc=legend)  # type: ignore[call-overload]
    axes.set(xlabel='epoch')
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def writable(names: dict[int, str]) -> tuple[list[str], dict[int, str]]:
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
