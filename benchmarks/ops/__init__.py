"""Cases of the benchmark of ops.

A file for each group of ops has two tables: `CASES`, from a name to what makes the case for a number of images, and
`SMALL`, for a test that both forms of a case compute the same.
"""

from collections.abc import Callable

from . import detection, gates, local, modulation, pyramids
from .case import Case

CASES: dict[str, Callable[[int], Case]] = {
    **detection.CASES,
    **gates.CASES,
    **local.CASES,
    **modulation.CASES,
    **pyramids.CASES,
}
SMALL: dict[str, Callable[[], Case]] = {
    **detection.SMALL,
    **gates.SMALL,
    **local.SMALL,
    **modulation.SMALL,
    **pyramids.SMALL,
}
