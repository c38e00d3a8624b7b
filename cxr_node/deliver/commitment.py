"""Storage commitment over the network, where we call: asking destinations, and reporting to modalities.

Each request has an association of its own, on which nothing else is sent: a report that came between a C-STORE request and
its response would be taken for the response.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import structlog
from pynetdicom import evt

from cxr_node import faults
from cxr_node.commitment import (
    ALL_COMMITTED,
    PUSH_MODEL,
    PUSH_MODEL_INSTANCE,
    REQUEST_ACTION,
    SOME_FAILED,
    build_report,
    build_request,
)
from cxr_node.deliver import reasons
from cxr_node.deliver.request import COMMITMENT, Peer, reporting_peer
from cxr_node.deliver.scu import Association
from cxr_node.errors import DeliveryError
from cxr_node.settings import DestinationSettings, Settings
from cxr_node.store import commitments, reports
from cxr_node.store.backoff import backoff_s
from cxr_node.store.reports import Report

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = structlog.get_logger()

_BETWEEN_LOOKS_S = 1.0
_STAY_S = 10.0
"""How long the association of a request is kept for a report that comes at once; a later one comes over the peer's own."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 60.0
_NO_PORT = (
    "It closed the association before the report, and the settings don't say where it listens: give its [[senders]] entry a "
    "`port`. Or let it ask again."
)


class Inquiry:
    """Asks one destination to commit what it has stored; stepped by the thread that delivers to it."""

    def __init__(self, engine: Engine, peer: Peer, destination: DestinationSettings) -> None:
        self._engine = engine
        self._peer = peer
        self._destination = destination
        self._association: Association | None = None
        self._stays_until = 0.0
        self._look_at = 0.0
        self._troubles = 0
        self._answered = threading.Event()
        self._log = log.bind(destination=destination.name)

    def go_on(self) -> None:
        """Ask what is due, over an association that stays a while for the report; end one that has stayed."""
        now = time.monotonic()
        if self._association is not None and (
            self._answered.is_set() or now >= self._stays_until or not self._association.is_open
        ):
            self.close()
        if self._association is not None or now < self._look_at:
            return
        self._look_at = now + _BETWEEN_LOOKS_S
        asking = commitments.prepare_to_ask(self._engine, self._destination.name, self._destination.commitment_timeout_s)
        if asking is None:
            return
        try:
            self._ask(asking)
            self._troubles = 0
        except DeliveryError as error:
            self.close()
            commitments.not_asked(self._engine, asking, str(error), may_have_arrived=error.unanswered)
            self._troubles += 1
            self._look_at = now + backoff_s(self._troubles, _FIRST_PAUSE_S, _LONGEST_PAUSE_S)
            self._log.warning("commitment not asked for", reason=str(error))

    def close(self) -> None:
        """Release the association."""
        association, self._association = self._association, None
        if association is not None:
            association.release()

    def _ask(self, asking: commitments.Asking) -> None:
        self._answered.clear()
        self._association = association = Association(self._peer, [COMMITMENT], on_event_report=self._on_report)
        if not association.accepts(COMMITMENT):
            self._refused(asking, reasons.no_commitment(self._peer))
            return
        request = build_request(asking.transaction_uid, asking.references)
        status = association.action(PUSH_MODEL, PUSH_MODEL_INSTANCE, REQUEST_ACTION, request)
        faults.point("commitment-asked")
        if status != 0:
            self._refused(asking, f"{self._peer} refuses to commit what it stored, status 0x{status:04X}: its log says why.")
            return
        self._stays_until = time.monotonic() + _STAY_S
        self._log.info("commitment asked for", transaction_uid=asking.transaction_uid, objects=len(asking.references))

    def _refused(self, asking: commitments.Asking, reason: str) -> None:
        commitments.refused(self._engine, asking, reason)
        self._log.warning("commitment refused", reason=reason)
        self.close()

    def _on_report(self, event: evt.Event) -> int:
        information = event.request.EventInformation  # type: ignore[union-attr]
        status = commitments.take_report(
            self._engine,
            b"" if information is None else information.getvalue(),
            explicit=not event.context.transfer_syntax.is_implicit_VR,
            timeouts={self._destination.name: self._destination.commitment_timeout_s},
        )
        self._answered.set()
        return status


class Reporter:
    """Tells modalities, over associations to them, what could not be told over theirs."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine
        self._association: Association | None = None

    def run(self, stop: threading.Event) -> None:
        """Report until `stop` is set."""
        first, troubles = True, 0
        while not stop.is_set():
            try:
                if first:
                    listening = {sender.ae_title for sender in self._settings.senders if sender.port}
                    reports.retry_held_reports(self._engine, listening)
                    first = False
                self.report_due(stop)
                troubles = 0
            except Exception:
                log.exception("reports of storage commitment failed")
                troubles += 1
            stop.wait(backoff_s(troubles, _FIRST_PAUSE_S, _LONGEST_PAUSE_S) if troubles else _BETWEEN_LOOKS_S)

    def report_due(self, stop: threading.Event) -> None:
        """Send each report that is due."""
        for report in reports.reports_due(self._engine):
            if stop.is_set():
                return
            sender = self._settings.listening_sender(report.ae_title, report.host)
            if sender is None:
                reports.report_failed(self._engine, report, _NO_PORT, hold=True)
                continue
            try:
                self._send(report, reporting_peer(self._settings, sender, report.host))
            except DeliveryError as error:
                reports.report_failed(self._engine, report, str(error))
                log.warning("report of storage commitment not sent", ae_title=report.ae_title, reason=str(error))

    def cut_off(self) -> None:
        """End the request under way; called from another thread when stopping takes too long."""
        if association := self._association:
            association.hang_up()

    def _send(self, report: Report, peer: Peer) -> None:
        self._association = association = Association(peer, [COMMITMENT], as_scp_of=[PUSH_MODEL])
        try:
            if not association.accepts(COMMITMENT):
                raise DeliveryError(f"{peer} doesn't take reports of Storage Commitment.")
            event_type = SOME_FAILED if report.failed else ALL_COMMITTED
            ds = build_report(report.transaction_uid, report.committed, report.failed)
            status = association.event_report(PUSH_MODEL, PUSH_MODEL_INSTANCE, event_type, ds)
            if status != 0:
                raise DeliveryError(f"{peer} answers the report of storage commitment with status 0x{status:04X}.")
        finally:
            self._association = None
            association.release()
        reports.report_sent(self._engine, report)
        log.info("storage commitment reported", transaction_uid=report.transaction_uid, ae_title=report.ae_title)
