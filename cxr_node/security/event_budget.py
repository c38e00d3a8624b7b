"""A budget of log and audit events for each address: some events individually, the rest as a count.

A peer that is refused thousands of times a minute, under as many names, neither fills the audit log nor displaces the events of
others.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from cxr_node.peer_address import site_of

_MOST_ADDRESSES = 4096
_MOST_KEYS = 10_000
"""Of what is remembered of peers, so that made-up names fill no memory."""


@dataclass
class _Account:
    left: float
    looked_at: float
    counted: int = 0


class Budget:
    """A token bucket of events of one kind from one address: a burst, then a steady rate; further events are counted.

    Where there are too many addresses, the one that was heard of longest ago is forgotten: nobody is silenced by another.

    Args:
        at_once: how many events in a row are written down singly.
        per_minute: how many of them come back in a minute.
        clock: seconds that count on evenly.
        peer_of: who an address counts as (`Settings.peer_of`).
    """

    def __init__(
        self,
        at_once: int,
        per_minute: float,
        clock: Callable[[], float] = time.monotonic,
        peer_of: Callable[[str], str] = site_of,
    ) -> None:
        self._at_once, self._per_s = at_once, per_minute / 60.0
        self._clock = clock
        self._peer_of = peer_of
        self._accounts: OrderedDict[tuple[str, str], _Account] = OrderedDict()
        self._forgotten: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()

    def takes(self, host: str, kind: str) -> bool:
        """Whether one more event is written down singly; if not, it is counted for `due`."""
        now = self._clock()
        key = self._peer_of(host), kind
        with self._lock:
            account = self._accounts.pop(key, None) or _Account(self._at_once, now)
            self._accounts[key] = account
            if len(self._accounts) > _MOST_ADDRESSES:
                (_, forgotten_kind), forgotten = self._accounts.popitem(last=False)
                if forgotten.counted:
                    self._forgotten["", forgotten_kind] = self._forgotten.get(("", forgotten_kind), 0) + forgotten.counted
            account.left = min(self._at_once, account.left + (now - account.looked_at) * self._per_s)
            account.looked_at = now
            if account.left >= 1:
                account.left -= 1
                return True
            account.counted += 1
            return False

    def due(self) -> list[tuple[str, str, int]]:
        """Address (empty: several), kind and number of what was counted; counting begins anew."""
        with self._lock:
            found = [(host, kind, count) for (host, kind), count in self._forgotten.items()]
            self._forgotten = {}
            for (host, kind), account in self._accounts.items():
                if account.counted:
                    found.append((host, kind, account.counted))
                    account.counted = 0
            return found


class LogThrottle:
    """Says of each key once in a while that it is time: for what would otherwise be written down without end."""

    def __init__(self, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._clock = clock
        self._due_at: dict[object, float] = {}
        self._lock = threading.Lock()

    def is_due(self, key: object) -> bool:
        """Whether it is time again for this key."""
        now = self._clock()
        with self._lock:
            is_due = now >= self._due_at.get(key, now)
            if is_due:
                self._due_at.pop(key, None)
                if len(self._due_at) >= _MOST_KEYS:  # the oldest goes: nobody is silenced by another's names
                    del self._due_at[next(iter(self._due_at))]
                self._due_at[key] = now + self._every_s
            return is_due
