"""Enters instances that arrive at the same time in one transaction, so that one flush of the disk serves them all."""

from __future__ import annotations

import fcntl
import os
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cxr_node.store.admissions import Admission, Arrival, admit_all

if TYPE_CHECKING:
    from sqlalchemy import Engine


@dataclass
class _Entry:
    arrival: Arrival
    outcome: Admission | Exception | None = None


class Together:
    """Group commit: whoever comes while another commits waits, and the first of those enters what has gathered.

    Nobody is held up for company: alone, an instance is entered at once. It also keeps associations, and processes, from
    competing for SQLite's write lock, which is waited for by sleeping and asking again.

    Args:
        engine: the database.
        lock: a file for the processes that receive to lock, one after the other; it is made.
    """

    def __init__(self, engine: Engine, lock: Path) -> None:
        self._engine = engine
        self._lock = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        weakref.finalize(self, os.close, self._lock)
        self._waiting: list[_Entry] = []
        self._gathering = threading.Lock()
        self._committing = threading.Lock()

    def admit(self, arrival: Arrival) -> Admission:
        """Enter an instance as `admissions.admit` does; when this returns it is committed."""
        entry = _Entry(arrival)
        with self._gathering:
            self._waiting.append(entry)
        with self._committing:
            if entry.outcome is None:
                with self._gathering:
                    gathered, self._waiting = self._waiting, []
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                try:
                    self._enter(gathered)
                finally:
                    fcntl.flock(self._lock, fcntl.LOCK_UN)
        if isinstance(entry.outcome, Exception):
            raise entry.outcome
        assert entry.outcome is not None
        return entry.outcome

    def _enter(self, entries: list[_Entry]) -> None:
        try:
            admissions = admit_all(self._engine, [entry.arrival for entry in entries])
        except Exception as error:
            if len(entries) == 1:
                entries[0].outcome = error
                return
            for entry in entries:  # what one of them is to blame for, the others don't suffer
                self._enter([entry])
            return
        for entry, admission in zip(entries, admissions, strict=True):
            entry.outcome = admission
