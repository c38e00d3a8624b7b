"""Writes down who was turned away: in the log, in the audit log, and in counts for `status`."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

import structlog

from cxr_node.receive.guard import Seldom
from cxr_node.records import AuditEvent, Sender
from cxr_node.store import audit, refusals

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = structlog.get_logger()

_BETWEEN_RECORDS_S = 60.0
_BETWEEN_WRITES_S = 1.0


class Counts:
    """Counts refusals in memory, and adds them to those in the database once a second while there are any.

    However many associations or images a peer has refused, that costs the database one transaction a second.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._counted: Counter[refusals.Refusal] = Counter()
        self._lock = threading.Lock()
        self._is_due = False

    def add(self, what: str, sender: Sender, reason: str) -> None:
        """Count one.

        Args:
            what: "association" or "image".
            sender: without AE titles if it came no further than its connection.
            reason: in words.
        """
        with self._lock:
            self._counted[refusals.Refusal(what, sender.calling_ae_title, sender.host, reason)] += 1
            if self._is_due:
                return
            self._is_due = True
        timer = threading.Timer(_BETWEEN_WRITES_S, self.write)
        timer.daemon = True
        timer.start()

    def write(self) -> None:
        """Add what has been counted to the database; what it doesn't take is lost with a line in the log."""
        with self._lock:
            counted, self._counted, self._is_due = self._counted, Counter(), False
        if not counted:
            return
        try:
            refusals.add(self._engine, counted)
        except Exception:  # a full disk: the log has had a line for each
            log.exception("refusals not counted", count=counted.total())


class Refused:
    """Writes down refused associations: in the log each time, in the audit log once a minute for the same reason."""

    def __init__(self, engine: Engine, counts: Counts) -> None:
        self._engine = engine
        self._counts = counts
        self._seldom = Seldom(_BETWEEN_RECORDS_S)

    def record(self, sender: Sender, reason: str) -> None:
        """Write it down; `sender` has no AE titles yet if it came no further than its connection."""
        title = sender.calling_ae_title
        log.warning("association refused", calling_ae_title=title, host=sender.host, reason=reason)
        self._counts.add("association", sender, reason)
        if not self._seldom.is_due((title, sender.host, reason)):
            return
        event = AuditEvent("association-refused", outcome="failure", user=title, host=sender.host, detail=reason)
        try:
            audit.record(self._engine, event)
        except Exception:
            log.exception("refusal not recorded")
