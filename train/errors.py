"""What goes wrong for a user: one exception, shown by the command line as one line."""

import difflib
import errno
import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """Something that the user can put right. Its text is one line: what is wrong, what was given, what would work."""


def near(name: str, choices: Iterable[str]) -> str:
    """'; did you mean ...?' with the choices closest to `name`, or nothing where none is close.

    Of dotted names the last parts are compared: that is what people remember, so `lr` finds `optim.lr`.
    """
    by_last: dict[str, list[str]] = {}
    for choice in choices:
        by_last.setdefault(choice.rsplit('.', 1)[-1], []).append(choice)
    close = difflib.get_close_matches(name.rsplit('.', 1)[-1], by_last, n=3, cutoff=0.7)
    found = [choice for last in close for choice in by_last[last]][:3]
    return f'; did you mean {" or ".join(map(repr, found))}?' if found else ''


def one_line(error: BaseException, limit: int = 400) -> str:
    """An exception's text with its lines joined and cut at `limit` characters; its type where it has no text."""
    text = ' '.join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f'{text[: limit - 4].rstrip()} ...'


def program() -> str:
    """How this command line is started here, as a shell takes it: `attnzoo` where that finds it, else by its path."""
    name, scripts = 'attnzoo', sysconfig.get_path('scripts')
    installed, found = shutil.which(name, path=scripts), shutil.which(name)
    if found and (installed is None or os.path.samefile(found, installed)):
        return name
    if installed is None:
        return shlex.join([_shortest(sys.executable), '-m', name])
    return shlex.quote(_shortest(installed))


def _shortest(path: str) -> str:
    """A path from the working directory where that is shorter and no step leads upwards."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


first_line = one_line
