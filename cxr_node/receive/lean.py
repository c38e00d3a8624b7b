"""Keeps out of the processes that receive what they never need: it would take memory, and time to load."""

from __future__ import annotations

import sys

_READ_PIXELS = ("numpy", "PIL", "gdcm", "tqdm")
"""pydicom loads these wherever they are installed, some 35 MB; reception decodes no pixels."""
_DRAW_LOGS = ("rich",)
"""structlog's, for tracebacks on a terminal; without it they are plain."""


def leave_out() -> None:
    """From now on these can't be imported by this process; call it before what would import them.

    None in `sys.modules` is Python's own way to say that there is no such module.
    """
    for name in (*_READ_PIXELS, *_DRAW_LOGS):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
