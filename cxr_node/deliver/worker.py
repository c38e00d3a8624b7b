"""Delivers results to one destination: claim → send → record, round after round, and the events that interrupt a round.

Over 300 lines: a round and everything that can end it stay together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog
from pydicom import dcmread

from cxr_node.commitment import requests
from cxr_node.deliver import reasons
from cxr_node.deliver.commitment import commitment_requester
from cxr_node.deliver.report_class import report_as
from cxr_node.deliver.request import (
    DUPLICATE_INSTANCE,
    FILE_GONE,
    Offer,
    StoreOutcome,
    StoreRequest,
    offers_to,
    peer_of,
    report_classes,
    unusable,
)
from cxr_node.deliver.scu import Association
from cxr_node.errors import AssociationLost, BucketUnavailable, DeliveryError
from cxr_node.logs import exception_text
from cxr_node.records import REPORT_CLASS_NAMES, Delivery, ResultKind
from cxr_node.settings import DestinationSettings, Settings
from cxr_node.store import faults
from cxr_node.store.backoff import backoff_s
from cxr_node.store.commit_watch import CommitWatch
from cxr_node.store.database import DatabaseTrouble, open_database
from cxr_node.store.files.disk_space import DiskSpace
from cxr_node.store.files.storage import blobs_of
from cxr_node.store.queue import deliveries, leases

log = structlog.get_logger()

_BATCH = 64
_IDLE_WAIT_S = 0.05
_WITHOUT_ROOM_WAIT_S = 1.0
_LINGER_S = 1.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0

_ORDER = {kind: place for place, kind in enumerate(ResultKind)}
"""The overlay first: the report refers to it."""


class DeliveryWorker:
    """Delivers results to one destination. Owns a database connection, and the association while it is in use.

    An association stays open for `linger_s` after the last object, for the results of the next image.
    """

    def __init__(self, settings: Settings, destination: DestinationSettings, linger_s: float = _LINGER_S) -> None:
        self.destination = destination
        self._peer = peer_of(settings, destination)
        self._blobs = blobs_of(settings)
        self._linger_s = linger_s
        self._disk_space = DiskSpace(settings.node.data_dir, settings.receive.min_free_mb, "deliver", self._log_disk_space)
        self._association: Association | None = None
        self._lingering_since: float | None = None
        self._claimed: Sequence[Delivery] = ()
        self._troubles = 0
        self._out_of_reach = False
        self._to_drain = True  # an earlier run may have left deliveries waiting for a destination in trouble
        self._log = log.bind(destination=destination.name)
        self._engine = open_database(settings)
        try:
            self._commits = CommitWatch(self._engine)
            self._owner = leases.owner_name(settings.node.data_dir)
            self._commitment = commitment_requester(self._engine, settings, destination)
            if not destination.storage_commitment:
                requests.drop_requests(self._engine, destination.name)
        except BaseException:
            self._engine.dispose()
            raise

    def run(self, stop: threading.Event) -> None:
        """Deliver until `stop` is set. Unexpected errors are logged, and delivery continues after a pause."""
        try:
            while not stop.is_set():
                try:
                    wait_s = self.deliver_due(stop)
                except Exception:
                    self._log.exception("delivery round failed")
                    self._hang_up()
                    self._give_back_rest()
                    wait_s = self._pause_s()
                finally:
                    self._claimed = ()
                self._wait(stop, wait_s)
        finally:
            self.close()

    def _wait(self, stop: threading.Event, wait_s: float) -> None:
        """Wait before the next round; a commit ends the wait where there was merely nothing to do."""
        if wait_s > _IDLE_WAIT_S:
            stop.wait(wait_s)
            return
        try:
            self._commits.wait(stop, wait_s)
        except DatabaseTrouble:  # the next round says what is wrong
            stop.wait(wait_s)

    def deliver_due(self, stop: threading.Event) -> float:
        """Send what is due, oldest first; seconds to wait before the next round.

        1. Claim a batch. 2. Send its objects over one association. 3. Record each outcome before the next object. If the
        destination as a whole fails, the attempt counts for the object in transit (without an association: for the first in
        line), the others are released untried, and the destination is paused, longer each time.
        """
        if not self._disk_space.is_available():  # what is sent has to be written down, too
            self._stop_lingering()
            return _WITHOUT_ROOM_WAIT_S
        if self.destination.storage_commitment:
            self._commitment.send_due()
        out_of_reach = self._probe() if self._out_of_reach else ""
        claimed = deliveries.claim(
            self._engine, self.destination.name, self._owner, _BATCH, leases.DELIVERY_S, delay_s=self.destination.delay_s
        )
        if not claimed:
            self._stop_lingering()
            return self._pause_s() if out_of_reach else _IDLE_WAIT_S
        self._claimed = waiting = sorted(claimed, key=lambda item: (item.created_at, item.job_id, _ORDER[item.kind]))
        in_trouble = False
        while waiting and not in_trouble and not stop.is_set():
            try:
                if out_of_reach:
                    raise DeliveryError(out_of_reach)
                outcome = self._send(waiting[0])
                in_trouble = outcome.status is not None and reasons.out_of_resources(outcome.status)
            except DeliveryError as error:
                self._hang_up()
                if stop.is_set():  # it was cut off from here
                    if error.unanswered:
                        deliveries.note_unanswered(self._engine, waiting[0])
                    break
                outcome, in_trouble = StoreOutcome(None, str(error), unanswered=error.unanswered), True
            except BucketUnavailable as error:  # no fault of the destination or the object: no attempt is counted
                self._log.error("results can't be read", reason=str(error))
                in_trouble = True
                break
            except Exception as error:
                self._hang_up()
                self._log.exception("sending failed", sop_instance_uid=waiting[0].sop_instance_uid)
                outcome = StoreOutcome(None, f"Sending failed in this program, not at the destination: {exception_text(error)}")
            self._record(waiting[0], outcome)
            self._claimed = waiting = waiting[1:]
        if waiting:
            deliveries.give_back(self._engine, waiting)
        self._lingering_since = time.monotonic()
        return self._pause_s() if in_trouble else 0.0

    def renew(self) -> None:
        """Renew the claims; called from another thread while this one waits for the peer."""
        if claimed := self._claimed:
            deliveries.renew(self._engine, self._owner, claimed, leases.DELIVERY_S)

    def cut_off(self) -> None:
        """End the request under way; called from another thread when stopping takes too long."""
        if association := self._association:
            association.hang_up()

    def close(self) -> None:
        """Release the associations and the database."""
        self._commitment.close()
        self._stop_lingering(at_once=True)
        self._commits.close()
        self._engine.dispose()

    def _send(self, delivery: Delivery) -> StoreOutcome:
        if delivery.attempts > self.destination.max_attempts:  # claimed this often without an outcome: the program died each time
            return StoreOutcome(None, "Each attempt to send it ended with the end of the program.", unusable=True)
        try:
            with self._blobs.fetch(delivery.path) as path:
                return self._send_file(delivery, path)
        except FileNotFoundError:
            return StoreOutcome(None, FILE_GONE, unusable=True)

    def _send_file(self, delivery: Delivery, path: Path) -> StoreOutcome:
        request = StoreRequest(path, delivery.sop_class_uid, delivery.transfer_syntax_uid, delivery.sop_instance_uid)
        was_lingering = self._association is not None and self._lingering_since is not None
        may_be_there = delivery.unanswered
        try:
            return self._resolve_duplicate(self._store(delivery.kind, request), delivery, may_be_there)
        except AssociationLost as error:
            if not was_lingering:
                raise
            may_be_there = may_be_there or error.unanswered
        self._hang_up()  # the peer ended it while nothing was sent, as it may
        try:
            return self._resolve_duplicate(self._store(delivery.kind, request), delivery, may_be_there)
        except DeliveryError as error:
            error.unanswered = error.unanswered or may_be_there
            raise

    def _resolve_duplicate(self, outcome: StoreOutcome, delivery: Delivery, may_be_there: bool) -> StoreOutcome:
        """Resolve 0x0111 (duplicate SOP instance): an earlier unanswered attempt has arrived, or the UID is taken there."""
        if outcome.status != DUPLICATE_INSTANCE:
            return outcome
        if may_be_there:
            return replace(outcome, error="", for_log="", warning=reasons.arrived_before(self._peer), is_there=True)
        reason = reasons.still_there(self._peer) if delivery.was_sent else reasons.held_already(self._peer)
        return replace(outcome, error=reason, for_log="", unusable=True)

    def _store(self, kind: ResultKind, request: StoreRequest) -> StoreOutcome:
        """C-STORE an object; a report in the first class that the settings allow and the destination accepts."""
        forms = [request.offer]
        if kind is ResultKind.REPORT:
            forms = [(sop_class_uid, request.transfer_syntax_uid) for sop_class_uid in report_classes(self.destination)]
        association = self._associated(forms)
        form = next((form for form in forms if association.accepts(form)), None)
        if form == request.offer or unusable(request):
            return association.store(request)
        if form is None:
            several = reasons.no_report_class(self._peer, [sop_class_uid for sop_class_uid, _ in forms])
            return StoreOutcome(None, several if len(forms) > 1 else association.refusal(forms[0]))
        sent_as = partial(deliveries.sent_as, self._engine, self.destination.name)
        instead = report_as(dcmread(request.path), form[0], sent_as)
        outcome = association.store(StoreRequest(request.path, *form, str(instead.SOPInstanceUID), instead))
        return replace(outcome, sent_as=(form[0], str(instead.SOPInstanceUID)))

    def _associated(self, forms: Sequence[Offer]) -> Association:
        if self._association and not (self._association.is_open and self._association.offered(forms)):
            self._stop_lingering(at_once=True)
        if self._association is None:
            others = {(item.sop_class_uid, item.transfer_syntax_uid) for item in self._claimed}
            offers = offers_to(self.destination).union(forms, others)
            self._out_of_reach = True
            self._association = Association(self._peer, offers)
            self._out_of_reach = False
        self._lingering_since = None
        return self._association

    def _probe(self) -> str:
        """Check whether the destination is back; return why it isn't.

        If it is, everything that waited for it becomes due at once.
        """
        try:
            self._association = Association(self._peer, offers_to(self.destination))
        except DeliveryError as error:
            return str(error)
        self._out_of_reach = False
        deliveries.make_due(self._engine, self.destination.name)
        return ""

    def _record(self, delivery: Delivery, outcome: StoreOutcome) -> None:
        known: dict[str, str | int] = {"sop_instance_uid": delivery.sop_instance_uid, "kind": str(delivery.kind)}
        known["attempt"] = delivery.attempts
        if outcome.stored and outcome.status is not None:
            faults.point("object-stored", delivery.sop_instance_uid)
            mark_sent = partial(deliveries.mark_sent, to_commit=self.destination.storage_commitment)
            warning = outcome.for_log or outcome.warning
            mark_sent(self._engine, delivery, outcome.status, warning=warning, sent_as=outcome.sent_as)
            if self._troubles or self._to_drain:
                deliveries.make_due(self._engine, self.destination.name)
            self._troubles, self._to_drain = 0, False
            if outcome.sent_as is not None:
                known["sent_as"] = REPORT_CLASS_NAMES[outcome.sent_as[0]]
            self._log.info("sent", status=f"0x{outcome.status:04X}", **known)
            if warning:
                self._log.warning("stored with a warning", reason=warning, **known)
            return
        attempt = (delivery, outcome.error, self.destination.max_attempts, outcome.status)
        mark_failed = partial(deliveries.mark_failed, hold=outcome.unusable, unanswered=outcome.unanswered)
        mark_failed(self._engine, *attempt, for_audit=outcome.for_log)
        self._log.warning("not sent", reason=outcome.for_log or outcome.error, **known)

    def _log_disk_space(self, is_available: bool) -> None:
        if is_available:
            self._log.info("the disk has space again: delivery continues")
        else:
            self._log.warning("too little free disk space: delivery is paused")

    def _pause_s(self) -> float:
        self._troubles += 1
        return backoff_s(self._troubles, _FIRST_PAUSE_S, _LONGEST_PAUSE_S)

    def _give_back_rest(self) -> None:
        """After a failed round, for example on a full disk: what can't be released returns when its lease ends."""
        try:
            if self._claimed:
                deliveries.give_back(self._engine, self._claimed)
        except Exception:
            self._log.exception("claimed deliveries not released")

    def _stop_lingering(self, *, at_once: bool = False) -> None:
        association = self._association
        if association is None:
            return
        idle_s = time.monotonic() - (self._lingering_since or 0)
        if at_once or idle_s >= self._linger_s or not association.is_open:
            self._association = None
            try:
                association.release()
            except Exception:
                self._log.exception("association not released")

    def _hang_up(self) -> None:
        association, self._association = self._association, None
        if association is not None:
            try:
                association.abort()
            except Exception:
                self._log.exception("association not aborted")
