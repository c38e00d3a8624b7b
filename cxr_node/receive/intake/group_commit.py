"""Group commit: instances that arrive at the same time share one transaction, and so one flush of the disk."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cxr_node.store.database import is_in_trouble
from cxr_node.store.queue.admissions import Admission, Arrival, admit_all

if TYPE_CHECKING:
    from sqlalchemy import Engine


@dataclass
class _Entry:
    arrival: Arrival
    outcome: Admission | Exception | None = None


class GroupCommit:
    """Group commit: callers that arrive during a commit wait, and the first of them commits all that have gathered.

    A single instance is committed at once, without waiting for others. `store.write_lock` orders processes that write to
    SQLite.

    Args:
        engine: the database.
        longest_wait_s: how long an instance waits for those before it.
    """

    def __init__(self, engine: Engine, longest_wait_s: float = 30.0) -> None:
        self._engine = engine
        self._longest_wait_s = longest_wait_s
        self._waiting: list[_Entry] = []
        self._gathering = threading.Lock()
        self._committing = threading.Lock()

    def admit(self, arrival: Arrival) -> Admission:
        """Enter an instance as `admissions.admit` does; when this returns it is committed.

        Raises:
            SQLAlchemyError: the database doesn't take it.
            TimeoutError: those before it took too long; it may come to be entered all the same.
        """
        entry = _Entry(arrival)
        with self._gathering:
            self._waiting.append(entry)
        if not self._committing.acquire(timeout=self._longest_wait_s):
            with self._gathering:
                self._waiting = [other for other in self._waiting if other is not entry]
            raise TimeoutError(f"earlier instances have been waiting for their commit for {self._longest_wait_s:g} s")
        try:
            if entry.outcome is None:
                with self._gathering:
                    gathered, self._waiting = self._waiting, []
                self._enter(gathered)
        finally:
            self._committing.release()
        if isinstance(entry.outcome, Exception):
            raise entry.outcome
        assert entry.outcome is not None
        return entry.outcome

    def _enter(self, entries: list[_Entry]) -> None:
        try:
            admissions = admit_all(self._engine, [entry.arrival for entry in entries])
        except Exception as error:
            if len(entries) == 1 or is_in_trouble(error):
                for entry in entries:  # the database is locked, full or away: for all alike, and each would wait again
                    entry.outcome = error
                return
            for entry in entries:  # what one of them is to blame for, the others don't suffer
                self._enter([entry])
            return
        for entry, admission in zip(entries, admissions, strict=True):
            entry.outcome = admission
