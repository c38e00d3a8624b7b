"""A fair write lock for one SQLite database, shared by threads and processes.

SQLite allows one writer at a time. The others poll with growing delays, up to a tenth of a second, and the first to poll after a
commit wins. With twenty web threads that write audit rows to a slow disk, a receiver starved for half a minute. A writer
therefore takes this lock first: one thread of each process waits and polls every few milliseconds, and the writer that is next in
line stays next. The kernel releases the locks of a process that dies.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import TimeoutError as DatabaseTimeoutError

from cxr_node.security.nofollow import open_file

_SHORTEST_SLEEP_S, _LONGEST_SLEEP_S = 0.0005, 0.002


class WriteLock:
    """One for each process and database.

    It consists of two file locks, like a turnstile: the holder of `next` is next in line and waits for `turn`, the write lock
    itself. A process that writes repeatedly has to take `next` again each time, and cannot overtake the process that holds it.

    Args:
        database: the database file; the lock files lie beside it.
        timeout_s: how long a writer waits for the lock.

    Raises:
        OSError: the lock files can't be made.
    """

    def __init__(self, database: Path, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._in_process = threading.Lock()
        self._next, self._turn = (
            open_file(database.with_name(f"{database.name}.{name}"), os.O_RDWR | os.O_CREAT) for name in ("next", "turn")
        )
        for descriptor in (self._next, self._turn):
            weakref.finalize(self, os.close, descriptor)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait for the lock, and hold it until the block ends.

        Raises:
            SQLAlchemyError: the wait timed out.
        """
        deadline = time.monotonic() + self._timeout_s
        if not self._in_process.acquire(timeout=self._timeout_s):
            raise _timed_out(self._timeout_s)
        try:
            self._lock(self._next, deadline)
            try:
                self._lock(self._turn, deadline)
            finally:
                fcntl.flock(self._next, fcntl.LOCK_UN)
            try:
                yield
            finally:
                fcntl.flock(self._turn, fcntl.LOCK_UN)
        finally:
            self._in_process.release()

    def _lock(self, descriptor: int, deadline: float) -> None:
        sleep_s = _SHORTEST_SLEEP_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise _timed_out(self._timeout_s) from None
            time.sleep(sleep_s)
            sleep_s = min(2 * sleep_s, _LONGEST_SLEEP_S)


def _timed_out(waited_s: float) -> DatabaseTimeoutError:
    return DatabaseTimeoutError(f"database is locked: others have been writing to it for {waited_s:g} s")
