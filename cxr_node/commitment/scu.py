"""Storage commitment requests to a destination (PS3.4 annex J).

Each request has its own association, on which nothing else is sent: a report between a C-STORE request and its response would
be mistaken for the response.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
from pynetdicom import evt

from cxr_node.commitment import request_reports, requests
from cxr_node.commitment.associations import CommitmentAssociation
from cxr_node.commitment.datasets import COMMITMENT, PUSH_MODEL, PUSH_MODEL_INSTANCE, REQUEST_ACTION, build_request
from cxr_node.errors import DeliveryError
from cxr_node.settings import DestinationSettings
from cxr_node.store import faults
from cxr_node.store.backoff import backoff_s

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = structlog.get_logger()

_BETWEEN_LOOKS_S = 1.0
_STAY_S = 10.0
"""How long the association of a request stays open for an immediate report; a later one comes over an association of the
peer's."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 60.0

Associate = Callable[[Callable[[evt.Event], int]], CommitmentAssociation]
"""Requests the association; the argument answers an N-EVENT-REPORT that the peer sends over it with a status.

Raises:
    DeliveryError: there is no association.
"""


def not_supported(peer: object) -> str:
    """What to do about a peer that accepts no presentation context for it."""
    return f"{peer} doesn't accept Storage Commitment: enable it there, or set storage_commitment = false."


class CommitmentRequester:
    """Requests storage commitment from one destination; called by the thread that delivers to it."""

    def __init__(self, engine: Engine, destination: DestinationSettings, associate: Associate) -> None:
        self._engine = engine
        self._destination = destination
        self._associate = associate
        self._association: CommitmentAssociation | None = None
        self._stays_until = 0.0
        self._look_at = 0.0
        self._troubles = 0
        self._answered = threading.Event()
        self._log = log.bind(destination=destination.name)

    def send_due(self) -> None:
        """Send the requests that are due; keep the association open for the report for a while."""
        now = time.monotonic()
        if self._association is not None and (
            self._answered.is_set() or now >= self._stays_until or not self._association.is_open
        ):
            self.close()
        if self._association is not None or now < self._look_at:
            return
        self._look_at = now + _BETWEEN_LOOKS_S
        request = requests.next_request(self._engine, self._destination.name, self._destination.commitment_timeout_s)
        if request is None:
            return
        try:
            self._ask(request)
            self._troubles = 0
        except DeliveryError as error:
            self.close()
            requests.mark_unreached(self._engine, request, str(error), may_have_arrived=error.unanswered)
            self._troubles += 1
            self._look_at = now + backoff_s(self._troubles, _FIRST_PAUSE_S, _LONGEST_PAUSE_S)
            self._log.warning("storage commitment not requested", reason=str(error))

    def close(self) -> None:
        """Release the association."""
        association, self._association = self._association, None
        if association is not None:
            association.release()

    def _ask(self, request: requests.CommitmentRequest) -> None:
        self._answered.clear()
        self._association = association = self._associate(self._on_report)
        if not association.accepts(COMMITMENT):
            self._refused(request, not_supported(association.peer))
            return
        information = build_request(request.transaction_uid, request.references)
        status = association.action(PUSH_MODEL, PUSH_MODEL_INSTANCE, REQUEST_ACTION, information)
        faults.point("commitment-asked")
        if status != 0:
            self._refused(request, f"{association.peer} refuses storage commitment, status 0x{status:04X}: its log says why.")
            return
        self._stays_until = time.monotonic() + _STAY_S
        self._log.info("storage commitment requested", transaction_uid=request.transaction_uid, objects=len(request.references))

    def _refused(self, request: requests.CommitmentRequest, reason: str) -> None:
        requests.refused(self._engine, request, reason)
        self._log.warning("commitment refused", reason=reason)
        self.close()

    def _on_report(self, event: evt.Event) -> int:
        information = event.request.EventInformation  # type: ignore[union-attr]
        status = request_reports.record_report(
            self._engine,
            b"" if information is None else information.getvalue(),
            explicit=not event.context.transfer_syntax.is_implicit_VR,
            timeouts={self._destination.name: self._destination.commitment_timeout_s},
            caller=(self._destination.commitment_ae_title or self._destination.ae_title, str(event.assoc.acceptor.address)),
        )
        self._answered.set()
        return status
