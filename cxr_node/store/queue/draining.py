"""The drain mark: a file in the data folder that stops reception from accepting images."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from cxr_node.errors import StoreError
from cxr_node.security.nofollow import write_anew

_FILE = ".drain"
_CHECK_INTERVAL_S = 1.0


@dataclass(frozen=True)
class Draining:
    """Since when (UTC seconds since the epoch) no new images are accepted, and who ordered it."""

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
    try:
        write_anew(root / _FILE, json.dumps(vars(draining)).encode())
    except OSError as error:
        raise StoreError(f"{root / _FILE} can't be written ({error.strerror}): change its owner, or free disk space.") from error
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


class DrainGate:
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
            if now - self._looked_at >= _CHECK_INTERVAL_S:
                self._looked_at, self._is_open = now, not self._path.exists()
            return self._is_open
