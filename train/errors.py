"""What goes wrong for a user: one exception, shown by the command line as one line."""

import difflib
import errno
import os
import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What a file system says to a path that somebody has named: not a bug of the program.
NOT_ALLOWED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)


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


def few(items: Sequence[str], count: int = 3) -> str:
    """The first of many names: 'a, b, c, ...'."""
    return ', '.join([*items[:count], *['...'] * (len(items) > count)])


def one_line(error: BaseException, limit: int = 400) -> str:
    """An exception's text with its lines joined, or its type where it has no text.

    Cut at `limit` characters, and each of its lines at a third of that: what explains it may stand below a long line.
    """
    lines = [' '.join(line.split()) for line in str(error).splitlines() if line.strip()]
    return _cut(' '.join(_cut(line, limit // 3) for line in lines), limit) or type(error).__name__


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f'{text[: limit - 4].rstrip()} ...'


def complain(message: str) -> None:
    """Print a message on stderr, as one line whatever stands in it."""
    line = re.sub(r'[\x00-\x1f\x7f-\x9f\u2028\u2029]', lambda match: ascii(match[0])[1:-1], message)
    print(f'attnzoo: {line}', file=sys.stderr)


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
    if not Path(path).is_relative_to(here):
        return path
    inside = str(Path(path).relative_to(here))
    return inside if os.sep in inside else os.path.join('.', inside)  # a shell looks for a bare name on its PATH
