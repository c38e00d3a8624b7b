"""Taking the node out of service: a mark in the data folder, at which reception looks."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from cxr_node.errors import StoreError

_FILE = ".drain"
_LOOKS_EVERY_S = 1.0


@dataclass(frozen=True)
class Draining:
    """Since when (UTC seconds since the epoch) no new images are taken, and who said so."""

    since: float
    by: str


def begin(root: Path, by: str) -> Draining:
    """Take no new images from now on, across restarts too; gives since when, which may be earlier.

    Raises:
        StoreError: the data folder can't be written.
    """
    if known := state(root):
        return known
    draining = Draining(time.time(), by)
    temporary = root / f"{_FILE}.{os.getpid()}.tmp"
    try:
        temporary.write_text(json.dumps(vars(draining)))
        temporary.replace(root / _FILE)
    except OSError as error:
        raise StoreError(f"{root / _FILE} can't be written ({error.strerror}): change its owner, or make room.") from error
    return draining


def end(root: Path) -> bool:
    """Take new images again; whether none were taken before.

    Raises:
        StoreError: the mark can't be removed.
    """
    try:
        (root / _FILE).unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StoreError(f"{root / _FILE} can't be removed ({error.strerror}): remove it by hand.") from error
    return True


def state(root: Path) -> Draining | None:
    """Since when the node is being taken out of service; None: it is not."""
    try:
        return Draining(**json.loads((root / _FILE).read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):  # made by hand, or not to be read: it is there
        return Draining(0.0, "unknown")


class Gate:
    """Whether new images are taken; looks at the mark at most once a second."""

    def __init__(self, root: Path) -> None:
        self._path = root / _FILE
        self._looked_at = float("-inf")
        self._is_open = True
        self._lock = threading.Lock()

    def is_open(self) -> bool:
        """True while the node isn't being taken out of service."""
        now = time.monotonic()
        with self._lock:
            if now - self._looked_at >= _LOOKS_EVERY_S:
                self._looked_at, self._is_open = now, not self._path.exists()
            return self._is_open
