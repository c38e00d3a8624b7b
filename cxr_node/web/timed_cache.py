"""A cache for expensive database queries: one query in a period, however many browsers there are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog

T = TypeVar("T")
log = structlog.get_logger()

_SHARE = 20.0
"""A value is kept at least this many times as long as it took to compute: that takes at most a twentieth of a processor."""
_LONGEST_S = 30.0


class TimedCache(Generic[T]):
    """Caches a value for some seconds, or longer if it is expensive, up to half a minute.

    Whoever asks for one that is past its time gets it all the same, while it is made anew behind their back; only one that is
    more than `too_old_s` old is waited for.

    Args:
        make: makes it.
        for_s: how long it is kept.
        too_old_s: see above.
        clock: a steady one.
    """

    def __init__(
        self, make: Callable[[], T], for_s: float, too_old_s: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._make, self._for_s, self._too_old_s, self._clock = make, for_s, too_old_s, clock
        self._lock = threading.Lock()
        self._is_being_made = self._is_closed = False
        self._thread: threading.Thread | None = None
        self._made: tuple[float, float, T] | None = None  # when, how long it is kept, the value

    def get(self) -> T:
        """The value; what `make` raises is raised here, where it has to be waited for."""
        made = self._made
        if made is not None:
            age_s = self._clock() - made[0]
            if age_s <= made[1]:
                return made[2]
            if age_s <= self._too_old_s:
                self._make_behind()
                return made[2]
        with self._lock:
            if self._made is None or self._made is made:
                self._make_now()
            assert self._made is not None
            return self._made[2]

    def close(self) -> None:
        """Wait until nothing is being made behind: whoever closes what `make` uses does this first."""
        with self._lock:
            self._is_closed, thread = True, self._thread
        if thread is not None:
            thread.join()

    def _make_now(self) -> None:
        started = self._clock()
        value = self._make()
        took_s = self._clock() - started
        self._made = (self._clock(), min(_LONGEST_S, max(self._for_s, _SHARE * took_s)), value)

    def _make_behind(self) -> None:
        with self._lock:
            if self._is_being_made or self._is_closed:
                return
            self._is_being_made = True
            self._thread = threading.Thread(target=self._make_in_thread, name="timed-cache", daemon=True)
            self._thread.start()

    def _make_in_thread(self) -> None:
        try:
            self._make_now()
        except Exception as error:  # the database is away: the value ages, and is waited for when it is too old
            log.warning("figures could not be refreshed", exc_info=error)
        finally:
            with self._lock:
                self._is_being_made = False
