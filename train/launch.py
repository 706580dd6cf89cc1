"""The command line that started this run, launcher included, as it can be pasted to start the run again."""

import os
import shlex
import shutil
import sys
from pathlib import Path

import psutil

from .errors import program


def command_line(processes: int, drop: str | None = None, add: str | None = None) -> str:
    """The command that runs, with its launcher where several processes share the run.

    Args:
        drop: leave out the arguments that begin so.
        add: a further argument.
    """
    launcher = _launcher() if processes > 1 else []
    arguments = [word for word in sys.argv[1:] if not (drop and word.startswith(drop))] + ([add] if add else [])
    return ' '.join([shlex.join(launcher) if launcher else program(), shlex.join(arguments)])


def _launcher() -> list[str]:
    """The words before our own arguments in the command line of the process that started this one.

    Nothing where none of those above this process has our arguments: a batch system has started the processes.
    """
    arguments = sys.argv[1:]
    try:
        for parent in psutil.Process().parents():
            words = parent.cmdline()
            if arguments and words[-len(arguments) :] == arguments:
                return _as_typed(words[: -len(arguments)])
    except psutil.Error:  # a parent of another user, or one that has just ended
        pass
    return []


def _as_typed(words: list[str]) -> list[str]:
    """`torchrun` for `/usr/bin/python3 /usr/bin/torchrun`, where the shell finds that one."""
    if len(words) > 1 and Path(words[0]).name.startswith('python') and os.access(words[1], os.X_OK):
        words = words[1:]
    name = Path(words[0]).name
    # Links are not followed: the Python of a virtual environment is a link to one that lacks its packages.
    return [name if shutil.which(name) == words[0] else words[0], *words[1:]]
