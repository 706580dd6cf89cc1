"""What is different where attnzoo runs in its checkout."""

import importlib.util
import os
import sys

import attnzoo.kernels


def hide_kernels() -> None:
    """Keep transformers from taking our folder of kernels for the package `kernels`, which it looks for.

    `python -m attnzoo` puts the working directory before all packages. To be called before transformers is imported.
    """
    found = importlib.util.find_spec('kernels') if 'kernels' not in sys.modules else None
    if found and found.origin and os.path.samefile(found.origin, attnzoo.kernels.__file__):
        sys.modules['kernels'] = None  # type: ignore[assignment]  # as if it were not there
