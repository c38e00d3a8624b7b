"""Storage commitment, where others call: modalities that ask, and destinations that report (PS3.4 annex J).

A report to a modality goes over the association that its request came over, if it stays open, and else over one that
`deliver` makes.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import structlog
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import N_ACTION_RSP

from cxr_node.commitment import (
    ALL_COMMITTED,
    PROCESSING_FAILURE,
    PUSH_MODEL,
    PUSH_MODEL_INSTANCE,
    REQUEST_ACTION,
    SOME_FAILED,
    build_report,
    read_request,
)
from cxr_node.errors import Rejected
from cxr_node.receive.admission import Room
from cxr_node.receive.messages import sender_of
from cxr_node.records import DataFolder
from cxr_node.settings import Settings
from cxr_node.store import commitments, reports
from cxr_node.store.blobs import LocalBlobs
from cxr_node.store.reports import Report

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = structlog.get_logger()

_NO_SUCH_ACTION, _INVALID_ARGUMENT = 0x0123, 0x0115
_STAY_S = 1.0
"""An association that is still open so long after the request's response waits for the report."""
_LEFT_TO_ASSOCIATION_S = 60.0
_DAY_S = 86400.0


def support(ae: AE) -> None:
    """Take Storage Commitment in either role: requests of modalities, and reports of destinations."""
    ae.add_supported_context(PUSH_MODEL, [ExplicitVRLittleEndian, ImplicitVRLittleEndian], scu_role=True, scp_role=True)


class Commitment:
    """Answers requests and takes reports, for all associations of this process."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._engine = engine
        self._blobs = LocalBlobs(DataFolder(settings.node.data_dir))
        self._room = Room(settings.node.data_dir, settings.receive.min_free_mb)
        self._settings = settings
        self._owed: dict[Association, Report] = {}

    def handlers(self) -> list[evt.EventHandlerType]:
        """What to bind to the associations' events."""
        return [
            (evt.EVT_N_ACTION, self._on_action),
            (evt.EVT_DIMSE_SENT, self._on_sent),
            (evt.EVT_N_EVENT_REPORT, self._on_report),
        ]

    def _on_action(self, event: evt.Event) -> tuple[int, Dataset | None]:
        """A modality asks. What is safe here is found out at once; the answer says only that it will be told."""
        sender = sender_of(event.assoc)
        if event.action_type != REQUEST_ACTION:
            return _NO_SUCH_ACTION, None
        try:
            transaction_uid, references = read_request(event.action_information)
        except Exception as error:  # also whatever broken bytes lead pydicom to
            reason = str(error) if isinstance(error, Rejected) else type(error).__name__
            log.warning("request of storage commitment not understood", reason=reason, calling_ae_title=sender.calling_ae_title)
            return _INVALID_ARGUMENT, None
        try:
            is_listening = self._settings.listening_sender(sender.calling_ae_title, sender.host) is not None
            committed, failed = reports.judge(
                self._engine, self._blobs, references, self._settings.retention.received_days * _DAY_S, self._room.is_left
            )
            report = reports.owe_report(
                self._engine,
                transaction_uid,
                sender.calling_ae_title,
                sender.host,
                committed,
                failed,
                wait_s=0 if is_listening else _LEFT_TO_ASSOCIATION_S,
            )
        except Exception:
            log.exception("request of storage commitment not taken")
            return PROCESSING_FAILURE, None
        log.info("storage commitment requested", transaction_uid=transaction_uid, committed=len(committed), failed=len(failed))
        if not is_listening:
            self._owed[event.assoc] = report
        return 0x0000, None

    def _on_sent(self, event: evt.Event) -> None:
        if isinstance(event.message, N_ACTION_RSP) and (report := self._owed.pop(event.assoc, None)):
            threading.Timer(_STAY_S, self._report_over, (event.assoc, report)).start()

    def _report_over(self, assoc: Association, report: Report) -> None:
        try:
            if not assoc.is_established:
                reports.report_failed(self._engine, report, "The association of the request was closed before the report.")
                return
            event_type = SOME_FAILED if report.failed else ALL_COMMITTED
            ds = build_report(report.transaction_uid, report.committed, report.failed)
            answer, _ = assoc.send_n_event_report(ds, event_type, PUSH_MODEL, PUSH_MODEL_INSTANCE)
            if answer.get("Status") == 0:
                reports.report_sent(self._engine, report)
                log.info("storage commitment reported", transaction_uid=report.transaction_uid, ae_title=report.ae_title)
            else:
                reports.report_failed(self._engine, report, "The modality didn't take the report over its association.")
        except Exception:  # its row remains, and `deliver` goes on
            log.exception("storage commitment not reported over the association of the request")

    def _on_report(self, event: evt.Event) -> tuple[int, Dataset | None]:
        return commitments.take_report(self._engine, lambda: event.event_information), None
