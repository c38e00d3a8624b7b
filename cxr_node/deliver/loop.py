"""The deliver role: claim → send → write down, one thread for each destination, so that a dead PACS holds up nobody else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import structlog

from cxr_node import faults
from cxr_node.deliver import reasons
from cxr_node.deliver.commitment import Inquiry, Reporter
from cxr_node.deliver.request import EXPECTED, Outcome, StoreRequest, peer_of
from cxr_node.deliver.scu import Association
from cxr_node.errors import AssociationLost, DeliveryError
from cxr_node.logs import explain
from cxr_node.records import Delivery, ResultKind
from cxr_node.settings import DestinationSettings, Settings
from cxr_node.store import commitments, deliveries, leases, missing_deliveries
from cxr_node.store.backoff import backoff_s
from cxr_node.store.database import asking, open_database
from cxr_node.store.parties import going_nowhere

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = structlog.get_logger()

_BATCH = 64
_IDLE_WAIT_S = 0.05
_LINGER_S = 1.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_STOP_GRACE_S = 5.0

_ORDER = {kind: place for place, kind in enumerate(ResultKind)}
"""The overlay first: the report refers to it."""


class Courier:
    """Brings results to one destination; holds its database connection, and the association while it is in use.

    An association stays open for `linger_s` after the last object, for the results of the next image.
    """

    def __init__(self, settings: Settings, destination: DestinationSettings, linger_s: float = _LINGER_S) -> None:
        self.destination = destination
        self._peer = peer_of(settings, destination)
        self._root = settings.node.data_dir
        self._linger_s = linger_s
        self._engine = open_database(settings)
        self._owner = leases.owner_name(self._root)
        self._association: Association | None = None
        self._lingering_since: float | None = None
        self._claimed: Sequence[Delivery] = ()
        self._troubles = 0
        self._out_of_reach = False
        self._to_drain = True  # an earlier run may have left deliveries waiting for a destination in trouble
        self._log = log.bind(destination=destination.name)
        self._commitment = Inquiry(self._engine, self._peer, destination)
        if not destination.storage_commitment:
            commitments.ask_no_more(self._engine, destination.name)

    def run(self, stop: threading.Event) -> None:
        """Deliver until `stop` is set. Whatever goes wrong is logged, and after a pause it goes on."""
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
                stop.wait(wait_s)
        finally:
            self.close()

    def deliver_due(self, stop: threading.Event) -> float:
        """Send what is due, oldest first; seconds to wait before the next round.

        1. Claim a batch. 2. Send its objects over one association. 3. Write down each one's outcome before the next.
        If the destination as a whole fails, the object under way bears the attempt (without an association: the first
        in line), the others go back untried, and the destination is left alone for a growing pause.
        """
        if self.destination.storage_commitment:
            self._commitment.go_on()
        out_of_reach = self._knock() if self._out_of_reach else ""
        claimed = deliveries.claim(self._engine, self.destination.name, self._owner, _BATCH, leases.DELIVERY_S)
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
                    break
                outcome, in_trouble = Outcome(None, str(error)), True
            except Exception as error:
                self._hang_up()
                self._log.exception("sending failed", sop_instance_uid=waiting[0].sop_instance_uid)
                outcome = Outcome(None, f"Sending failed here, not there: {explain(error)}")
            self._write_down(waiting[0], outcome)
            self._claimed = waiting = waiting[1:]
        if waiting:
            deliveries.give_back(self._engine, waiting)
        self._lingering_since = time.monotonic()
        return self._pause_s() if in_trouble else 0.0

    def renew(self) -> None:
        """Keep what is claimed; called from another thread while this one waits for the peer."""
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
        self._engine.dispose()

    def _send(self, delivery: Delivery) -> Outcome:
        if delivery.attempts > self.destination.max_attempts:  # claimed so often without an end: the program died each time
            return Outcome(None, "Each attempt to send it ended with the end of the program.", unusable=True)
        request = StoreRequest(
            self._root / delivery.path, delivery.sop_class_uid, delivery.transfer_syntax_uid, delivery.sop_instance_uid
        )
        was_lingering = self._association is not None and self._lingering_since is not None
        try:
            return self._associated(request).store(request)
        except AssociationLost:
            if not was_lingering:
                raise
        self._hang_up()  # the peer ended it while nothing was sent, as it may
        return self._associated(request).store(request)

    def _associated(self, request: StoreRequest) -> Association:
        if self._association and not (self._association.is_open and self._association.offered([request.offer])):
            self._stop_lingering(at_once=True)
        if self._association is None:
            expected = {EXPECTED[kind] for kind in self.destination.send}
            offers = expected | {(item.sop_class_uid, item.transfer_syntax_uid) for item in self._claimed}
            self._out_of_reach = True
            self._association = Association(self._peer, offers)
            self._out_of_reach = False
        self._lingering_since = None
        return self._association

    def _knock(self) -> str:
        """See whether the destination is back; gives why it isn't.

        If it is, all that waited for it is due: nothing sits out its long wait.
        """
        try:
            self._association = Association(self._peer, {EXPECTED[kind] for kind in self.destination.send})
        except DeliveryError as error:
            return str(error)
        self._out_of_reach = False
        deliveries.make_due(self._engine, self.destination.name)
        return ""

    def _write_down(self, delivery: Delivery, outcome: Outcome) -> None:
        known = {"sop_instance_uid": delivery.sop_instance_uid, "kind": str(delivery.kind), "attempt": delivery.attempts}
        if outcome.stored and outcome.status is not None:
            faults.point("object-stored", delivery.sop_instance_uid)
            deliveries.mark_sent(self._engine, delivery, outcome.status, to_commit=self.destination.storage_commitment)
            if self._troubles or self._to_drain:
                deliveries.make_due(self._engine, self.destination.name)
            self._troubles, self._to_drain = 0, False
            self._log.info("sent", status=f"0x{outcome.status:04X}", **known)
            return
        limit = self.destination.max_attempts
        deliveries.mark_failed(self._engine, delivery, outcome.error, limit, outcome.status, hold=outcome.unusable)
        self._log.warning("not sent", reason=outcome.for_log or outcome.error, **known)

    def _pause_s(self) -> float:
        self._troubles += 1
        return backoff_s(self._troubles, _FIRST_PAUSE_S, _LONGEST_PAUSE_S)

    def _give_back_rest(self) -> None:
        """After a round that failed, on a full disk perhaps: what can't be given back comes when its lease lapses."""
        try:
            if self._claimed:
                deliveries.give_back(self._engine, self._claimed)
        except Exception:
            self._log.exception("what was claimed could not be given back")

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
                self._log.exception("the association could not be released")

    def _hang_up(self) -> None:
        association, self._association = self._association, None
        if association is not None:
            try:
                association.abort()
            except Exception:
                self._log.exception("the association could not be aborted")


def _add_missing(engine: Engine, settings: Settings, stop: threading.Event) -> None:
    """At the start the settings may be others than before: add what they ask for now."""
    try:
        added = missing_deliveries.add_at_start(engine, settings, stop.is_set)
        if added != missing_deliveries.Added():
            log.info("the settings ask for more than before", deliveries_added=added.deliveries, jobs_done_again=added.jobs)
        with asking(engine) as ask:
            nowhere = going_nowhere(ask)
        for row in nowhere:
            log.warning("results go nowhere: no destination is set for their sender", **row)
    except Exception as error:  # what is there is delivered all the same
        log.error("deliveries that are missing not added", exc_info=error)


def run(settings: Settings, stop: threading.Event, ready: Callable[[], None]) -> None:
    """Run the role until `stop` is set; what was claimed and not begun goes back to the queue.

    Raises:
        StoreError: it can't start.
    """
    engine = open_database(settings)
    leases.release_dead(engine, settings)
    couriers = [Courier(settings, destination) for destination in settings.destinations]
    threads = [
        threading.Thread(target=courier.run, args=(stop,), name=f"deliver-{courier.destination.name}") for courier in couriers
    ]
    reporter = Reporter(settings, engine)
    threads.append(threading.Thread(target=reporter.run, args=(stop,), name="report"))
    for thread in threads:
        thread.start()
    ready()
    log.info("delivering", destinations=[courier.destination.name for courier in couriers])
    adding = threading.Thread(target=_add_missing, args=(engine, settings, stop), name="missing")
    adding.start()
    asked = {destination.name: destination.send for destination in settings.destinations}
    while not stop.is_set():
        try:
            if ended := deliveries.end_unasked(engine, asked):
                log.warning("deliveries cancelled: the settings no longer ask for them", count=ended)
        except Exception as error:  # the next time will do
            log.warning("deliveries that nobody asks for not cancelled", exc_info=error)
        if stop.wait(leases.DELIVERY_S / 4):
            break
        for courier in couriers:
            try:
                courier.renew()
            except Exception as error:  # the next time will do
                log.warning("leases not renewed", exc_info=error)
    deadline = time.monotonic() + _STOP_GRACE_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    for cut_off, thread in zip([*(courier.cut_off for courier in couriers), reporter.cut_off], threads, strict=True):
        if thread.is_alive():
            cut_off()
        thread.join()
    adding.join()
    engine.dispose()
