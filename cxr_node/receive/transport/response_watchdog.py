"""Response timeouts: a sender gets a "try again" status instead of no response at all.

A response waits for the disk and for the database. When either stalls (a full I/O queue, a database that another process holds),
the thread that should respond is blocked in the kernel. A watchdog thread of the same process then responds in its place, after
`RESPONSE_TIMEOUT_S`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

RESPONSE_TIMEOUT_S = 20.0
"""From the last byte of a request to its response. Modalities wait for half a minute or longer."""
_LONGEST_INTERVAL_S = 1.0


class PendingResponse:
    """A response that is being worked out. Exactly one of two threads sends it: the one that claims it first.

    Attributes:
        timed_out: the watchdog claimed it.
    """

    def __init__(self, on_timeout: Callable[[], None], on_stuck: Callable[[], None]) -> None:
        self.timed_out = False
        self._is_claimed = False
        self._action: threading.Thread | None = None
        self._lock = threading.Lock()
        self._on_timeout, self._on_stuck = on_timeout, on_stuck

    def claim(self) -> bool:
        """Whether the caller sends the response. If not, the watchdog has sent its own by the time this returns."""
        with self._lock:
            self._is_claimed = True
        if self._action is not None:
            self._action.join()
        return not self.timed_out

    def expire(self) -> bool:
        """Respond in its place, and on the second call end the association. Returns whether a second call may follow."""
        with self._lock:
            if self._is_claimed:
                return False
            had_timed_out, self.timed_out = self.timed_out, True
            # in a thread of its own, since it may block until the peer reads
            self._action = threading.Thread(
                target=self._on_stuck if had_timed_out else self._on_timeout, name="response-timeout", daemon=True
            )
            self._action.start()
        return not had_timed_out


class ResponseWatchdog:
    """Watches pending responses; its thread runs only while there are any.

    Args:
        timeout_s: how long a response may take. After twice that time the association ends.
    """

    def __init__(self, timeout_s: float = RESPONSE_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._pending: dict[PendingResponse, float] = {}
        self._lock = threading.Lock()
        self._is_running = False

    @contextmanager
    def watch(self, on_timeout: Callable[[], None], on_stuck: Callable[[], None]) -> Iterator[PendingResponse]:
        """Watch a response until the block ends.

        Args:
            on_timeout: responds in its place; called from another thread.
            on_stuck: ends the association, because the peer doesn't read; called from another thread.
        """
        response = PendingResponse(on_timeout, on_stuck)
        with self._lock:
            self._pending[response] = time.monotonic() + self._timeout_s
            if not self._is_running:
                self._is_running = True
                threading.Thread(target=self._run, name="response-watchdog", daemon=True).start()
        try:
            yield response
        finally:
            with self._lock:
                self._pending.pop(response, None)

    def _run(self) -> None:
        try:
            idle = 0
            while True:
                time.sleep(min(_LONGEST_INTERVAL_S, self._timeout_s / 4))
                with self._lock:
                    idle = 0 if self._pending else idle + 1
                    if idle > 30:
                        self._is_running = False
                        return
                    now = time.monotonic()
                    due = [response for response, at in self._pending.items() if at <= now]
                for response in due:
                    self._expire(response)
        except BaseException:
            with self._lock:
                self._is_running = False  # the next response starts another thread
            raise

    def _expire(self, response: PendingResponse) -> None:
        may_expire_again = response.expire()
        with self._lock:
            if not may_expire_again:
                self._pending.pop(response, None)
            elif response in self._pending:
                self._pending[response] += self._timeout_s
