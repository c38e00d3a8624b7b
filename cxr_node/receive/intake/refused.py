"""Records refusals: in the log, in the audit log, and as counts for `status`."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from cxr_node.audit.refusal_events import RefusalEvents
from cxr_node.peer_address import site_of
from cxr_node.records import AuditEvent, Sender
from cxr_node.store.views import refusals

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = structlog.get_logger()

_BETWEEN_WRITES_S = 1.0
_MOST_OF_ONE, _MOST_COUNTED = 20, 200
"""Different refusals of one address, and of all, between two writes to the database, each of which is a change of its own."""


class Counts:
    """Counts refusals in memory, and adds them to those in the database once a second while there are any.

    However many associations or images a peer has refused, that costs the database one transaction a second.
    """

    def __init__(self, engine: Engine, peer_of: Callable[[str], str] = site_of) -> None:
        """Args: peer_of: who an address counts as (`Settings.peer_of`)."""
        self._engine = engine
        self._peer_of = peer_of
        self._counted: Counter[refusals.CountedRefusal] = Counter()
        self._of_address: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._is_due = False

    def add(self, what: str, sender: Sender, reason: str) -> None:
        """Count one.

        Args:
            what: "association" or "image".
            sender: without AE titles if it came no further than its connection.
            reason: as text.
        """
        refusal = refusals.CountedRefusal(what, sender.calling_ae_title, sender.host, reason)
        with self._lock:
            if refusal not in self._counted:
                peer = self._peer_of(sender.host)
                if self._of_address[peer] >= _MOST_OF_ONE or len(self._counted) >= _MOST_COUNTED:
                    refusal = refusals.CountedRefusal(what, "", peer, refusals.OTHERS)
                self._of_address[peer] += 1
            self._counted[refusal] += 1
            if self._is_due:
                return
            self._is_due = True
        timer = threading.Timer(_BETWEEN_WRITES_S, self.write)
        timer.daemon = True
        timer.start()

    def write(self) -> None:
        """Add what has been counted to the database; what it doesn't take is lost with a line in the log.

        Nothing uses the database when this has returned, unless more is counted.
        """
        with self._writing:
            with self._lock:
                counted, self._counted, self._is_due = self._counted, Counter(), False
                self._of_address = Counter()
            if not counted:
                return
            try:
                refusals.add(self._engine, counted)
            except Exception:  # a full disk: the log has had a line for each
                log.exception("refusals not counted", count=counted.total())


class Refused:
    """Writes down refused associations and storage commitment requests, and counts the associations."""

    def __init__(self, counts: Counts, events: RefusalEvents) -> None:
        self._counts = counts
        self._events = events

    def record(self, sender: Sender, reason: str, kind: str = "refused") -> None:
        """Write it down.

        Args:
            sender: without AE titles if it came no further than its connection.
            reason: as text.
            kind: see `RefusalEvents.record`.
        """
        self._record(sender, "association refused", reason, kind, reason)

    def _record(self, sender: Sender, line: str, reason: str, kind: str, detail: str) -> None:
        title = sender.calling_ae_title
        if self._events.may_log(sender.host, kind):
            log.warning(line, calling_ae_title=title, host=sender.host, reason=reason)
        self._counts.add("association", sender, detail)
        event = AuditEvent("association-refused", outcome="failure", user=title, host=sender.host, detail=detail)
        self._events.record(event, kind, throttle=(title, sender.host, detail))

    def record_breach(self, sender: Sender, what: str, reason: str) -> None:
        """Write down that an association was aborted for what its peer sent, or another request than C-STORE refused.

        Args:
            sender: the peer.
            what: one of these two, of a handful, as text.
            reason: as text.
        """
        self._record(sender, what, reason, what, f"{what}: {reason}")

    def record_commitment(self, sender: Sender, reason: str) -> None:
        """Write down a refused request of storage commitment, or a report of one that may not report."""
        title = sender.calling_ae_title
        if self._events.may_log(sender.host, "commitment-refused"):
            log.warning("storage commitment request refused", reason=reason, calling_ae_title=title, host=sender.host)
        event = AuditEvent("commitment-refused", "failure", user=title, host=sender.host, detail=reason)
        self._events.record(event, "storage commitment requests", throttle=(title, sender.host, "commitment", reason))
