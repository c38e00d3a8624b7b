"""How much of the node one peer may take: connections and time. Instances a minute are counted in `rate`."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from enum import StrEnum

from cxr_node.settings import ReceiveSettings

SLOWEST_BYTES_PER_S = 4096
"""A peer that sends no faster than this on the average of a message, after `network_timeout_s`, is cut off."""

_MOST_KEYS = 10_000
"""Of what is remembered of peers, so that made-up names fill no memory."""


class Pace:
    """How long a peer may still take for what it has begun: some time in any case, and more with all that it has sent."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._ends_at = 0.0

    def begin(self) -> None:
        """A new message begins."""
        self._ends_at = time.monotonic() + self._patience_s

    def has_sent(self, size: int) -> None:
        """So many bytes have come."""
        self._ends_at += size / SLOWEST_BYTES_PER_S

    def left_s(self) -> float:
        """How long the next bytes may take.

        Raises:
            TimeoutError: the time is over.
        """
        left_s = self._ends_at - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the peer is too slow")
        return min(left_s, self._patience_s)


class Seldom:
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
            if len(self._due_at) >= _MOST_KEYS:
                self._due_at = {known: due_at for known, due_at in self._due_at.items() if due_at > now}
                if len(self._due_at) >= _MOST_KEYS:
                    return False
            is_due = now >= self._due_at.get(key, now)
            if is_due:
                self._due_at[key] = now + self._every_s
            return is_due


class Place(StrEnum):
    """What a connection may hope for."""

    FREE = "free"
    TO_BE_REFUSED = "to be refused"
    """Too many are there: its association is rejected, which says so."""
    NONE = "none"
    """Far too many are there: it is closed."""


class Places:
    """How many connections there may be at the same time, in all and from one address, and how many there are.

    Who only connects takes a place too, until it is cut off for its silence.
    """

    def __init__(self, settings: ReceiveSettings) -> None:
        self._limit = settings.max_associations
        self._limit_of_one = settings.max_associations_per_sender
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    def enter(self, host: str) -> Place:
        """Count one more from an address, unless there is none for it."""
        with self._lock:
            over = max((self._taken.total() + 1) / self._limit, (self._taken[host] + 1) / self._limit_of_one)
            if over > 2:
                return Place.NONE
            self._taken[host] += 1
            return Place.FREE if over <= 1 else Place.TO_BE_REFUSED

    def leave(self, host: str) -> None:
        """Count one less."""
        with self._lock:
            self._taken[host] -= 1
            if self._taken[host] <= 0:
                del self._taken[host]
