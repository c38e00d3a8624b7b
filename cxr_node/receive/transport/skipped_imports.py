"""Blocks imports that receiver processes never need, to save memory and load time."""

from __future__ import annotations

import sys

_READ_PIXELS = ("numpy", "PIL", "gdcm", "tqdm")
"""pydicom loads these wherever they are installed, some 35 MB; reception decodes no pixels."""
_DRAW_LOGS = ("rich",)
"""structlog's, for tracebacks on a terminal; without it they are plain."""


def skip_imports() -> None:
    """From now on these can't be imported by this process; call it before what would import them.

    None in `sys.modules` is Python's own way to say that there is no such module.
    """
    for name in (*_READ_PIXELS, *_DRAW_LOGS):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
