"""What goes wrong for a user: one exception, shown by the command line as one line."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can put right. Its text is one line: what is wrong, what was given, what would work."""


def near(name: str, choices: Iterable[str]) -> str:
    """'; did you mean ...?' with the choices closest to `name`, or nothing where none is close."""
    # The last part of a dotted key is what people remember: `lr` finds `optim.lr`.
    choices = list(choices)
    exact = [choice for choice in choices if choice.rsplit('.', 1)[-1] == name]
    found = exact or difflib.get_close_matches(name, choices, n=3, cutoff=0.7)
    return f'; did you mean {" or ".join(repr(choice) for choice in found[:3])}?' if found else ''


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type where it has no text."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
