"""What goes wrong for a user: one exception, shown by the command line as one line."""

import difflib
import errno
from collections.abc import Iterable

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


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type where it has no text."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
