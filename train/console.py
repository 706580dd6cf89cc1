"""What a run says while it works: a progress bar on a terminal, plain lines elsewhere."""

import os
import signal
import sys
import time
from collections.abc import Generator, Iterable
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


def say(text: str) -> None:
    """Print a line as it is, brackets and all."""
    console.print(text)


def show_table(title: str, rows: dict[str, str]) -> None:
    """Print names and values under a title."""
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column()
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)


def track(
    items: Iterable, label: str, total: int | None, every: float = 30, start: int = 0, *, show: bool = True
) -> Generator:
    """The items, with their progress shown: a bar on a terminal, else a line every so many seconds."""
    if not show:
        yield from items
    elif console.is_terminal:
        columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(label, total=total, completed=start)
            for item in items:
                yield item
                progress.advance(task)
    else:
        told = time.monotonic()
        for count, item in enumerate(items, start + 1):
            yield item
            if time.monotonic() - told >= every:
                told = time.monotonic()
                say(f'{label}  {count}/{total or "?"}')


class Interruption:
    """Ctrl-C and SIGTERM as a wish that the loop grants at the end of a step. A second Ctrl-C quits at once."""

    def __init__(self) -> None:
        self.wanted = False

    def __enter__(self) -> 'Interruption':
        self._old = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.wanted and number == signal.SIGINT:
            os._exit(130)
        self.wanted = True
        print('\nfinishing this step; Ctrl-C again quits at once', file=sys.stderr, flush=True)
