"""Storage commitment over associations that peers request: requests of modalities and reports of destinations (PS3.4 annex J).

A report to a modality goes over the association of its request if that stays open, otherwise over one that the node requests
(`reporting`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import structlog
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import N_ACTION_RSP
from pynetdicom.dimse_primitives import N_ACTION

from cxr_node.commitment import reports, request_reports
from cxr_node.commitment.datasets import (
    ALL_COMMITTED,
    OUT_OF_RESOURCES,
    PROCESSING_FAILURE,
    PUSH_MODEL,
    PUSH_MODEL_INSTANCE,
    REQUEST_ACTION,
    SOME_FAILED,
    build_report,
    read_request,
)
from cxr_node.commitment.reports import Report, UndecidedRequest
from cxr_node.commitment.request_worker import RequestWorker
from cxr_node.errors import Rejected
from cxr_node.records import Sender
from cxr_node.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = structlog.get_logger()

_NO_SUCH_ACTION, _INVALID_ARGUMENT, _NOT_AUTHORISED = 0x0123, 0x0115, 0x0124
_STAY_S = 1.0
"""An association that is still open this long after the response to the request gets the report."""
_END_TIMEOUT_S = 5.0
_NOT_A_DESTINATION = (
    "it reports storage commitment, but its AE title, address and certificate are not those of a destination; a destination that "
    "calls from elsewhere needs a [[senders]] entry with its `hosts`"
)


def support(ae: AE) -> None:
    """Take Storage Commitment in either role: requests of modalities, and reports of destinations."""
    ae.add_supported_context(PUSH_MODEL, [ExplicitVRLittleEndian, ImplicitVRLittleEndian], scu_role=True, scp_role=True)


def information_of(event: evt.Event) -> tuple[bytes, bool]:
    """The data set of an N-ACTION or N-EVENT-REPORT request as it came, and whether its VRs are explicit."""
    request = event.request
    information = request.ActionInformation if isinstance(request, N_ACTION) else request.EventInformation  # type: ignore[union-attr]
    content = b"" if information is None else information.getvalue()
    return content, not event.context.transfer_syntax.is_implicit_VR


class CommitmentScp:
    """Answers requests and takes reports, for all associations of this process.

    Args:
        settings: the settings tree.
        engine: the database.
        sender_of: who requested an association.
        is_known: whether a sender is among the [[senders]].
        destinations_of: names of the destinations for which a sender may report.
        has_free_space: whether the disk has room for another row.
        on_refused: called for each refused request, with the reason.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        *,
        sender_of: Callable[[Association], Sender],
        is_known: Callable[[Sender], bool],
        destinations_of: Callable[[Sender], list[str]],
        has_free_space: Callable[[], bool],
        on_refused: Callable[[Sender, str], None],
    ) -> None:
        self._engine = engine
        self._worker = RequestWorker(settings, engine, has_free_space)
        self._settings = settings
        self._sender_of = sender_of
        self._is_known = is_known
        self._destinations_of = destinations_of
        self._has_free_space = has_free_space
        self._refuse = on_refused
        self._asked: dict[Association, UndecidedRequest] = {}
        self._lock = threading.Lock()
        self._timers: set[threading.Timer] = set()
        self._is_ending = False

    def handlers(self) -> list[evt.EventHandlerType]:
        """What to bind to the associations' events."""
        return [
            (evt.EVT_N_ACTION, self._on_action),
            (evt.EVT_DIMSE_SENT, self._on_sent),
            (evt.EVT_N_EVENT_REPORT, self._on_report),
        ]

    def end(self) -> None:
        """Decide on no more requests, and report nothing more; what is left of both is left to the role that reports."""
        self._worker.end()
        with self._lock:
            self._is_ending, timers = True, list(self._timers)
        for timer in timers:
            timer.cancel()
        for timer in timers:  # one may be writing down what became of its report
            timer.join(_END_TIMEOUT_S)

    def _on_action(self, event: evt.Event) -> tuple[int, Dataset | None]:
        """A modality asks. The answer says only that it will be told; what is safe here is found out after it."""
        sender = self._sender_of(event.assoc)
        if event.action_type != REQUEST_ACTION:
            self._refuse(sender, f"there is no action of type {event.action_type}, only {REQUEST_ACTION}, the request")
            return _NO_SUCH_ACTION, None
        if self._settings.receive.commitment_requests == "known_senders" and not self._is_known(sender):
            self._refuse(sender, "its sender is not among the [[senders]]; see receive.commitment_requests")
            return _NOT_AUTHORISED, None
        content, explicit = information_of(event)
        try:
            transaction_uid, references = read_request(content, explicit=explicit)
            if not references:  # a report that all of nothing is kept would be taken for more than that
                raise Rejected("a storage commitment request that refers to no instance")
        except Rejected as error:
            self._refuse(sender, str(error))
            return _INVALID_ARGUMENT, None
        if not self._has_free_space():
            self._refuse(sender, "too little free disk space to record a report")
            return OUT_OF_RESOURCES, None
        try:
            who = (sender.calling_ae_title, sender.host)
            asked = reports.take_request(self._engine, transaction_uid, *who, references, self._settings.peer_of)
        except reports.TooManyOpen as error:
            self._refuse(sender, str(error))
            return OUT_OF_RESOURCES, None
        except Exception:
            log.exception("storage commitment request not recorded")
            return PROCESSING_FAILURE, None
        log.info("storage commitment requested", transaction_uid=transaction_uid, instances=len(references))
        self._asked[event.assoc] = asked
        return 0x0000, None

    def _on_sent(self, event: evt.Event) -> None:
        if isinstance(event.message, N_ACTION_RSP) and (asked := self._asked.pop(event.assoc, None)):
            self._worker.put(asked, partial(self._report_soon, event.assoc, time.monotonic()))

    def _report_soon(self, assoc: Association, answered_at: float, report: Report) -> None:
        """Report over the association of the request, unless the modality listens for reports."""
        if self._settings.listening_sender(report.ae_title, report.host) is None:
            wait_s = max(0.0, answered_at + _STAY_S - time.monotonic())
            timer = threading.Timer(wait_s, self._report_over, (assoc, report))
            with self._lock:
                if not self._is_ending:
                    self._timers.add(timer)
                    timer.start()

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
                reports.report_failed(self._engine, report, "The modality didn't accept the report over its association.")
        except Exception:  # its row remains, and `deliver` continues
            log.exception("storage commitment not reported over the association of the request")
        finally:
            with self._lock:
                self._timers.discard(threading.current_thread())

    def _on_report(self, event: evt.Event) -> tuple[int, Dataset | None]:
        sender = self._sender_of(event.assoc)
        names = self._destinations_of(sender)
        if not names:
            self._refuse(sender, _NOT_A_DESTINATION)
            return PROCESSING_FAILURE, None
        timeouts = {one.name: one.commitment_timeout_s for one in self._settings.destinations if one.name in names}
        content, explicit = information_of(event)
        caller = (sender.calling_ae_title, sender.host)
        return request_reports.record_report(self._engine, content, explicit=explicit, timeouts=timeouts, caller=caller), None
