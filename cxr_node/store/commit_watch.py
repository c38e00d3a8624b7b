"""Wakes a role that waits for work when another process commits to the database."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from cxr_node.store.prepared import drive

if TYPE_CHECKING:
    from sqlalchemy import Engine

_INTERVAL_S = 0.01
"""Between two looks at SQLite's counter, which takes some ten microseconds; also the least time between two wake-ups."""


class CommitWatch:
    """Waits until something may have changed in an SQLite database; on PostgreSQL, for the whole time.

    SQLite counts the commits that other connections have made (`PRAGMA data_version`).

    Args:
        engine: the database.
    """

    def __init__(self, engine: Engine) -> None:
        self._connection = engine.connect() if engine.dialect.name == "sqlite" else None
        self._seen = 0

    def wait(self, stop: threading.Event, timeout_s: float) -> None:
        """Return when another connection has committed since this returned last, at `stop`, or after `timeout_s` seconds.

        Raises:
            SQLAlchemyError: the database can't be read.
        """
        if self._connection is None:
            stop.wait(timeout_s)
            return
        deadline = time.monotonic() + timeout_s
        while not stop.wait(min(_INTERVAL_S, max(0.0, deadline - time.monotonic()))):
            ((version,),) = drive(self._connection, "PRAGMA data_version", ())
            if version != self._seen or time.monotonic() >= deadline:
                self._seen = version
                return

    def close(self) -> None:
        """Close its connection."""
        if self._connection is not None:
            self._connection.close()
