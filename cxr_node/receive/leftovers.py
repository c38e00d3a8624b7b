"""What a receiver that died left half-received. Apart, so that the process that only accepts loads no DICOM for it."""

from __future__ import annotations

import fcntl
from pathlib import Path


def remove_leftovers(folder: Path) -> int:
    """Remove files that a receiver left when it died; nothing of them was acknowledged. Gives how many there were.

    Files that another living receiver is writing are locked, and stay.
    """
    removed = 0
    for path in folder.iterdir():
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            path.unlink(missing_ok=True)
            removed += 1
    return removed
