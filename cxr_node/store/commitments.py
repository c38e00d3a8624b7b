"""Storage commitment of our results: what destinations have been asked, and what they have confirmed."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from pydicom import Dataset
from pydicom.uid import generate_uid
from sqlalchemy import Connection, Engine, and_, bindparam, or_, select, update

from cxr_node import faults
from cxr_node.commitment import PROCESSING_FAILURE, REASONS, Reference, read_report
from cxr_node.records import AuditEvent, DeliveryState
from cxr_node.store import audit
from cxr_node.store.backoff import backoff_s
from cxr_node.store.database import write
from cxr_node.store.schema import deliveries, instances, jobs, results

log = structlog.get_logger()

_LONGEST_WAIT_S = 86400.0
_MOST_ASKS = 12
"""With waits that double from ten minutes up to a day: about five days."""
_MOST_AT_ONCE = 500
_MOST_RESENDS = 20
_FIRST_RESEND_WAIT_S, _LONGEST_RESEND_WAIT_S = 5.0, 3600.0
_NEVER_CONFIRMED = (
    "The destination stored it, and never reported that it will keep it, however often it was asked: does it know this node's "
    "AE title and address? Then `cxr-node queue retry`, which sends it again; or set storage_commitment = false."
)


@dataclass(frozen=True)
class Asking:
    """A request to be made: a transaction and what it is about."""

    transaction_uid: str
    references: tuple[Reference, ...]


def prepare_to_ask(engine: Engine, destination: str, timeout_s: float) -> Asking | None:
    """Take what a destination has stored and has yet to commit, under a new transaction; None if there is nothing due.

    Written down before the request is made, since the report may come before the response. It is due again after
    `timeout_s`, and after each time without a report after twice as long.
    """
    now = time.time()
    due = and_(
        deliveries.c.destination == destination,
        deliveries.c.state == DeliveryState.COMMITTING,
        or_(deliveries.c.not_before <= now, deliveries.c.not_before > now + _LONGEST_WAIT_S),
    )
    with engine.connect() as connection:
        if connection.execute(select(deliveries.c.id).where(due).limit(1)).first() is None:
            return None
    transaction_uid = str(generate_uid(prefix=None))
    with write(engine) as connection:
        given_up = connection.execute(
            update(deliveries)
            .where(due, deliveries.c.asks >= _MOST_ASKS)
            .values(state=DeliveryState.HELD, reason=_NEVER_CONFIRMED)
            .returning(deliveries.c.id)
        )
        _record_given_up(connection, given_up.scalars().all(), f"asked {_MOST_ASKS} times, never confirmed; held")
        rows = connection.execute(
            select(deliveries.c.id, deliveries.c.asks, results.c.sop_class_uid, results.c.sop_instance_uid)
            .join(results, deliveries.c.result_id == results.c.id)
            .where(due)
            .order_by(deliveries.c.id)
            .limit(_MOST_AT_ONCE)
            .with_for_update(of=deliveries, skip_locked=True)
        ).all()
        if not rows:
            return None
        connection.execute(
            update(deliveries)
            .where(deliveries.c.id == bindparam("row"))
            .values(transaction_uid=transaction_uid, asks=deliveries.c.asks + 1, not_before=bindparam("again_at")),
            [{"row": row.id, "again_at": now + min(_LONGEST_WAIT_S, timeout_s * 2.0**row.asks)} for row in rows],
        )
    faults.point("commitment-noted")
    return Asking(transaction_uid, tuple((row.sop_class_uid, row.sop_instance_uid) for row in rows))


def not_asked(engine: Engine, asking: Asking, reason: str) -> None:
    """The request could not be made: the destination was not reached. It doesn't count, and is due again."""
    with write(engine) as connection:
        connection.execute(
            update(deliveries)
            .where(deliveries.c.transaction_uid == asking.transaction_uid, deliveries.c.state == DeliveryState.COMMITTING)
            .values(not_before=0, asks=deliveries.c.asks - 1, reason=reason)
        )


def refused(engine: Engine, asking: Asking, reason: str) -> None:
    """The destination refused the request itself; it is made again when its time is over."""
    with write(engine) as connection:
        connection.execute(
            update(deliveries)
            .where(deliveries.c.transaction_uid == asking.transaction_uid, deliveries.c.state == DeliveryState.COMMITTING)
            .values(reason=reason)
        )


def take_report(engine: Engine, read: Callable[[], Dataset]) -> int:
    """Take an N-EVENT-REPORT of a destination, whose Event Information `read` gives; the status to answer with."""
    try:
        transaction_uid, committed, failed = read_report(read())
        found = note_report(engine, transaction_uid, committed, failed)
    except Exception as error:  # also whatever broken bytes lead pydicom to
        log.warning("report of storage commitment not taken", exc_info=error)
        return PROCESSING_FAILURE
    log.info("commitment reported", transaction_uid=transaction_uid, committed=len(committed), failed=len(failed), known=found)
    return 0x0000


def note_report(engine: Engine, transaction_uid: str, committed: Collection[str], failed: Mapping[str, int]) -> int:
    """Write down what a destination reported; how many deliveries it was about.

    What it committed is sent. What it didn't keep is sent again, after a wait that grows with each time, and held in the end.
    """
    now = time.time()
    with write(engine) as connection:
        rows = connection.execute(
            select(
                deliveries.c.id,
                deliveries.c.attempts,
                deliveries.c.destination,
                results.c.sop_instance_uid,
                instances.c.patient_id,
                instances.c.study_instance_uid,
            )
            .join(results, deliveries.c.result_id == results.c.id)
            .join(jobs, results.c.job_id == jobs.c.id)
            .join(instances, jobs.c.instance_id == instances.c.id)
            .where(deliveries.c.transaction_uid == transaction_uid, deliveries.c.state == DeliveryState.COMMITTING)
            .with_for_update(of=deliveries)  # reported twice at once, it is noted once
        ).all()
        for row in rows:
            reason = ""
            values: dict[str, Any] = {}
            if row.sop_instance_uid in committed:
                values = {"state": DeliveryState.SENT, "committed_at": now, "reason": ""}
            elif row.sop_instance_uid in failed:
                code = failed[row.sop_instance_uid]
                held = row.attempts >= _MOST_RESENDS
                reason = f"It stored the object and didn't keep it: {REASONS.get(code, 'failure')} (0x{code:04X})."
                values = {
                    "state": DeliveryState.HELD if held else DeliveryState.WAITING,
                    "asks": 0,
                    "reason": reason,
                    "not_before": now + backoff_s(row.attempts, _FIRST_RESEND_WAIT_S, _LONGEST_RESEND_WAIT_S),
                }
            if not values:
                continue
            connection.execute(update(deliveries).where(deliveries.c.id == row.id).values(transaction_uid="", **values))
            audit.add(
                connection,
                AuditEvent(
                    "result-not-kept" if reason else "result-committed",
                    "failure" if reason else "success",
                    user=row.destination,
                    patient_id=row.patient_id,
                    study_instance_uid=row.study_instance_uid,
                    sop_instance_uid=row.sop_instance_uid,
                    detail=reason,
                ),
            )
            if values["state"] == DeliveryState.HELD:
                _record_given_up(connection, [row.id], f"sent {row.attempts} times, never kept; held")
    return len(rows)


def ask_no_more(engine: Engine, destination: str) -> None:
    """The settings say that a destination is no longer asked: what it has stored is sent, and what never was confirmed too."""
    never_confirmed = and_(deliveries.c.state == DeliveryState.HELD, deliveries.c.reason == _NEVER_CONFIRMED)
    committing = and_(
        deliveries.c.destination == destination, or_(deliveries.c.state == DeliveryState.COMMITTING, never_confirmed)
    )
    with engine.connect() as connection:
        if connection.execute(select(deliveries.c.id).where(committing).limit(1)).first() is None:
            return
    with write(engine) as connection:
        changed = connection.execute(
            update(deliveries)
            .where(committing)
            .values(state=DeliveryState.SENT, transaction_uid="", reason="")
            .returning(deliveries.c.id)
        )
        _record_given_up(connection, changed.scalars().all(), "storage_commitment = false: no longer asked for")


def _record_given_up(connection: Connection, delivery_ids: Sequence[int], why: str) -> None:
    """Audit that what a destination has stored is no longer waited for to be committed, one event for each object."""
    for row in connection.execute(
        select(deliveries.c.destination, results.c.sop_instance_uid, instances.c.patient_id, instances.c.study_instance_uid)
        .join(results, deliveries.c.result_id == results.c.id)
        .join(jobs, results.c.job_id == jobs.c.id)
        .join(instances, jobs.c.instance_id == instances.c.id)
        .where(deliveries.c.id.in_(delivery_ids))
        .order_by(deliveries.c.id)
    ).all():
        audit.add(
            connection,
            AuditEvent(
                "commitment-given-up",
                "failure",
                user=row.destination,
                patient_id=row.patient_id,
                study_instance_uid=row.study_instance_uid,
                sop_instance_uid=row.sop_instance_uid,
                detail=why,
            ),
        )
