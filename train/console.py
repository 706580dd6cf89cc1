"""What a run says while it works: a progress bar on a terminal, plain lines elsewhere."""

import os
import signal
import sys
import time
from collections.abc import Generator, Iterable
from contextlib import suppress
from types import FrameType
from typing import ClassVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

INTERRUPTED, CLOSED_PIPE = 130, 141  # exit status, as a shell gives it to what Ctrl-C or a closed pipe has ended


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """`attnzoo ... | head -1`: whoever read stdout has gone. A run is asked to stop; anything else ends here."""
        run = Interruption.current
        if run is None:
            return super().on_broken_pipe()
        run.ask(CLOSED_PIPE)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())  # what lies in its buffer is written when Python ends
        self.quiet = self.file is sys.stderr
        self.file = sys.stderr


console = _Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


def say(text: str) -> None:
    """Print a line as it is, brackets and all."""
    console.print(text)


def say_nothing(_: str) -> None:
    """What a process says that is not the main one."""


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
    """Ctrl-C, SIGTERM and a closed stdout as a wish that the loop grants at the end of a step.

    A second Ctrl-C quits at once.

    Attributes:
        wanted: a stop was asked for.
        status: what the program then exits with.
    """

    current: ClassVar['Interruption | None'] = None

    def __init__(self) -> None:
        self.wanted, self.status = False, INTERRUPTED
        self._signalled = False

    def __enter__(self) -> 'Interruption':
        self._old = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        Interruption.current = self
        return self

    def __exit__(self, *_: object) -> None:
        Interruption.current = None
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def ask(self, status: int) -> None:
        self.wanted, self.status = True, self.status if self.wanted else status

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._signalled and number == signal.SIGINT:
            os._exit(INTERRUPTED)
        self._signalled = True
        self.ask(INTERRUPTED)
        # Past Python's own buffer, which a signal may have met in the middle of a write.
        with suppress(OSError):
            os.write(2, b'\nfinishing this step; Ctrl-C again quits at once\n')
