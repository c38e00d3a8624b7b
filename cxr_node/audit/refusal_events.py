"""Writes refusals to the log and the audit log, within each address's budget."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from cxr_node.peer_address import site_of
from cxr_node.records import AuditEvent
from cxr_node.security.event_budget import Budget, LogThrottle
from cxr_node.store.audit_log import audit

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = structlog.get_logger()

_BETWEEN_RECORDS_S = 60.0
_ROWS_AT_ONCE, _ROWS_A_MINUTE = 30, 6
"""Audit events for one kind of refusal and one address; the rest are recorded as a count, once a minute."""
_LINES_AT_ONCE, _LINES_A_MINUTE = 100, 60
"""Of the log, likewise."""


class RefusalEvents:
    """Writes refusals to the log and the audit log, within each address's budget.

    The same event is written once a minute. What goes beyond the budget of an address is counted, and the number written
    a minute later; it costs nobody else a row.
    """

    def __init__(self, engine: Engine, peer_of: Callable[[str], str] = site_of) -> None:
        """Args: peer_of: who an address counts as (`Settings.peer_of`)."""
        self._engine = engine
        self._throttle = LogThrottle(_BETWEEN_RECORDS_S)
        self._rows = Budget(_ROWS_AT_ONCE, _ROWS_A_MINUTE, peer_of=peer_of)
        self._lines = Budget(_LINES_AT_ONCE, _LINES_A_MINUTE, peer_of=peer_of)
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._is_due = False

    def may_log(self, host: str, kind: str) -> bool:
        """Whether one more line in the log may tell of it."""
        is_taken = self._lines.takes(host, kind)
        if not is_taken:
            self._sum_up_later()
        return is_taken

    def record(self, event: AuditEvent, kind: str, *, throttle: object = None) -> None:
        """Add an event to the audit log, or count it. Never raises: the refusal stands all the same.

        Args:
            event: with the address that it comes from.
            kind: what has a budget of its own, of a handful: a break-in attempt isn't hidden by wrong names.
            throttle: what makes it the same event as one of the last minute; None: nothing does.
        """
        if throttle is not None and not self._throttle.is_due(throttle):
            return
        if not self._rows.takes(event.host, f"{event.event}: {kind}"):
            self._sum_up_later()
            return
        self._write(event)

    def write(self) -> None:
        """Write down how many events went beyond the budgets; as with `Counts.write`, nothing is being written after it."""
        with self._lock:
            self._is_due = False
        with self._writing:
            for host, kind, count in self._rows.due():
                event, _, what = kind.partition(": ")
                detail = f"{count:,} more from this address, not recorded individually: {what}"
                self._write(AuditEvent(event, "failure", host=host, detail=detail))
        for host, kind, count in self._lines.due():
            log.warning("more of the same, not logged individually", host=host, kind=kind, count=count)

    def _sum_up_later(self) -> None:
        with self._lock:
            if self._is_due:
                return
            self._is_due = True
        timer = threading.Timer(_BETWEEN_RECORDS_S, self.write)
        timer.daemon = True
        timer.start()

    def _write(self, event: AuditEvent) -> None:
        try:
            audit.record(self._engine, event)
        except Exception:  # a full disk, a database that is away
            log.exception("refusal not recorded")
