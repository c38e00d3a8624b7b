"""Storage commitment reports to modalities, over associations that the node requests (PS3.4 annex J)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from cxr_node.commitment import reports
from cxr_node.commitment.associations import CommitmentAssociation
from cxr_node.commitment.datasets import (
    ALL_COMMITTED,
    COMMITMENT,
    PUSH_MODEL,
    PUSH_MODEL_INSTANCE,
    SOME_FAILED,
    build_report,
)
from cxr_node.commitment.reports import Report
from cxr_node.commitment.request_worker import RequestWorker
from cxr_node.errors import DeliveryError
from cxr_node.settings import SenderSettings, Settings
from cxr_node.store.backoff import backoff_s
from cxr_node.store.files.disk_space import DiskSpace

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = structlog.get_logger()

_BETWEEN_LOOKS_S = 1.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 60.0
_NO_PORT = (
    "It closed the association before the report, and the settings don't say where it listens: add a `port` to its [[senders]] "
    "entry, or repeat the request there."
)


class Reporter:
    """Sends modalities the reports that could not be sent over their own associations, and decides on what was left undecided.

    Args:
        settings: the settings tree.
        engine: the database.
        associate: requests an association with a sender of the settings at an address; raises `DeliveryError`.
    """

    def __init__(
        self, settings: Settings, engine: Engine, associate: Callable[[SenderSettings, str], CommitmentAssociation]
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._associate = associate
        self._association: CommitmentAssociation | None = None
        self._disk_space = DiskSpace(settings.node.data_dir, settings.receive.min_free_mb, "deliver")
        self._worker = RequestWorker(settings, engine, self._disk_space.is_available)

    def run(self, stop: threading.Event) -> None:
        """Report until `stop` is set."""
        first, troubles = True, 0
        while not stop.is_set():
            if not self._disk_space.is_available():
                stop.wait(_BETWEEN_LOOKS_S)
                continue
            try:
                if first:
                    listening = {sender.ae_title for sender in self._settings.senders if sender.port}
                    reports.retry_held_reports(self._engine, listening)
                    first = False
                self.decide_left(stop)
                self.report_due(stop)
                troubles = 0
            except Exception:
                log.exception("storage commitment reports failed")
                troubles += 1
            stop.wait(backoff_s(troubles, _FIRST_PAUSE_S, _LONGEST_PAUSE_S) if troubles else _BETWEEN_LOOKS_S)

    def decide_left(self, stop: threading.Event) -> None:
        """Decide on a request that the process which took it has not decided on, such as one that died."""
        for asked in reports.undecided(self._engine)[:1]:
            if not stop.is_set():
                self._worker.decide(asked)

    def report_due(self, stop: threading.Event) -> None:
        """Send each report that is due. A modality that takes none is left alone, and keeps nobody else waiting."""
        silent: set[tuple[str, str]] = set()
        for report in reports.reports_due(self._engine):
            if stop.is_set():
                return
            if (report.ae_title, report.host) in silent:
                continue
            sender = self._settings.listening_sender(report.ae_title, report.host)
            if sender is None:
                reports.report_failed(self._engine, report, _NO_PORT, hold=True)
                continue
            try:
                self._send(report, sender)
            except DeliveryError as error:
                silent.add((report.ae_title, report.host))
                reports.report_failed(self._engine, report, str(error))
                reports.postpone(self._engine, report)
                log.warning("storage commitment report not sent", ae_title=report.ae_title, reason=str(error))

    def cut_off(self) -> None:
        """End what is under way; called from another thread when stopping takes too long."""
        self._worker.end()
        if association := self._association:
            association.hang_up()

    def _send(self, report: Report, sender: SenderSettings) -> None:
        self._association = association = self._associate(sender, report.host)
        try:
            if not association.accepts(COMMITMENT):
                raise DeliveryError(f"{association.peer} does not accept Storage Commitment reports.")
            event_type = SOME_FAILED if report.failed else ALL_COMMITTED
            ds = build_report(report.transaction_uid, report.committed, report.failed)
            status = association.event_report(PUSH_MODEL, PUSH_MODEL_INSTANCE, event_type, ds)
            if status != 0:
                raise DeliveryError(f"{association.peer} responds to the storage commitment report with status 0x{status:04X}.")
        finally:
            self._association = None
            association.release()
        reports.report_sent(self._engine, report)
        log.info("storage commitment reported", transaction_uid=report.transaction_uid, ae_title=report.ae_title)
