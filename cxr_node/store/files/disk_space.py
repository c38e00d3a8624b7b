"""Free disk space: `receive.min_free_mb` stays free, whichever role writes.

As the disk fills up, the roles stop one after the other, so that what is already here can be finished: reception first, then
analysis, then delivery. `housekeeping` starts to remove old files before reception stops.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from cxr_node.settings import Settings
from cxr_node.store.files.instances import free_bytes

_MARGIN = {"receive": 1 / 16, "work": 1 / 32, "deliver": 0.0}
"""What each role leaves free beyond the reserve, as a share of the reserve."""
_CHECK_INTERVAL_S = 1.0


def paused_roles(settings: Settings, free: int) -> list[str]:
    """The roles that pause with so many free bytes, in the order in which they pause."""
    return [role for role in _MARGIN if free < least_free_bytes(role, settings.receive.min_free_mb)]


def least_free_bytes(role: str, min_free_mb: int) -> int:
    """How many bytes have to be free for a role ("receive", "work" or "deliver") to write."""
    return int(min_free_mb * 2**20 * (1 + _MARGIN[role]))


class DiskSpace:
    """Whether a role may write; checks the filesystem at most once a second.

    Args:
        folder: the data folder.
        min_free_mb: as the settings say.
        role: "receive", "work" or "deliver".
        on_change: called with False when space runs out, and with True when there is space again.
    """

    def __init__(
        self, folder: Path, min_free_mb: int, role: str = "receive", on_change: Callable[[bool], None] = lambda _: None
    ) -> None:
        self._folder = folder
        self._least_bytes = least_free_bytes(role, min_free_mb)
        self._on_change = on_change
        self._checked_at = float("-inf")
        self._is_available = True
        self._lock = threading.Lock()

    def is_available(self) -> bool:
        """True while more than the reserve is free."""
        now = time.monotonic()
        with self._lock:
            was_available = self._is_available
            if now - self._checked_at >= _CHECK_INTERVAL_S:
                self._checked_at = now
                try:
                    self._is_available = free_bytes(self._folder) >= self._least_bytes
                except OSError:  # the filesystem is gone
                    self._is_available = False
            is_available = self._is_available
        if is_available != was_available:
            self._on_change(is_available)
        return is_available
