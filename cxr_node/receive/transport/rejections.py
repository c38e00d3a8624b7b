"""Records the rejections of the accepting process in a separate thread, so that a slow database delays nobody."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from cxr_node.audit.refusal_events import RefusalEvents
from cxr_node.receive.intake.refused import Counts, Refused
from cxr_node.records import Sender
from cxr_node.settings import Settings
from cxr_node.store.database import open_database

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = structlog.get_logger()

_MOST_WAITING = 1000
_END_TIMEOUT_S = 10.0
_LONGEST_WAIT_S = 1.0
"""How long to wait for a locked database: later rejections wait behind it."""


@dataclass(frozen=True)
class _Refusal:
    sender: Sender
    reason: str
    kind: str
    answer: Callable[[], None]


class RejectionWriter:
    """Takes refusals until `end`; the database is opened with the first."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._waiting: queue.Queue[_Refusal | None] = queue.Queue(_MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._engine: Engine | None = None
        self._unrecorded = 0

    def put(self, sender: Sender, reason: str, kind: str, answer: Callable[[], None]) -> None:
        """Have a refusal written down.

        Args:
            sender: without AE titles if it came no further than its connection.
            reason: as text.
            kind: see `RefusalEvents.record`.
            answer: tells the peer; called from another thread, after the refusal is in the audit log.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="turned-away", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait(_Refusal(sender, reason, kind, answer))
        except queue.Full:  # the database takes its time
            self._unrecorded += 1
            answer()

    def end(self) -> None:
        """Write what is still to be written."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(_END_TIMEOUT_S)

    def _run(self) -> None:
        try:
            self._engine = open_database(self._settings, longest_wait_s=_LONGEST_WAIT_S)
        except Exception:  # refused all the same
            log.exception("refusals can't be recorded")
            self._answer_all()
            return
        try:
            self._record_all(self._engine)
        finally:
            self._engine.dispose()

    def _record_all(self, engine: Engine) -> None:
        peer_of = self._settings.peer_of
        counts, events = Counts(engine, peer_of), RefusalEvents(engine, peer_of)
        refused = Refused(counts, events)
        while (one := self._waiting.get()) is not None:
            try:
                refused.record(one.sender, one.reason, one.kind)
            except Exception:  # no thread for a timer, say
                log.exception("refusal not recorded")
            one.answer()
            if self._unrecorded and self._waiting.empty():
                log.warning("refusals not recorded: the database takes its time", count=self._unrecorded)
                self._unrecorded = 0
        counts.write()
        events.write()

    def _answer_all(self) -> None:
        while (one := self._waiting.get()) is not None:
            one.answer()
