"""Removes half-received files of a dead receiver. A separate module, so that the accepting process loads no DICOM for it."""

from __future__ import annotations

import fcntl
from contextlib import suppress
from pathlib import Path


def remove_leftovers(folder: Path) -> int:
    """Remove files that a receiver left when it died; nothing of them was acknowledged. Gives how many there were.

    Files that another living receiver is writing are locked, and stay. What has vanished meanwhile, or can't be removed, isn't
    counted.
    """
    removed = 0
    try:
        paths = list(folder.iterdir())
    except OSError:  # somebody has removed the folder
        return 0
    for path in paths:
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            removed += 1
    return removed
