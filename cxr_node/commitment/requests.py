"""Storage commitment of results: requests to destinations. `request_reports` records the reports."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from pydicom.uid import generate_uid
from sqlalchemy import ColumnElement, Connection, Engine, and_, bindparam, case, delete, false, insert, or_, select, update

from cxr_node.dicom.references import Reference
from cxr_node.records import AuditEvent, DeliveryState
from cxr_node.store import faults
from cxr_node.store.audit_log import audit
from cxr_node.store.database import write
from cxr_node.store.queue.corrections import cancel_superseded
from cxr_node.store.schema import commitment_asks, deliveries, instances, jobs, results

log = structlog.get_logger()

_LONGEST_WAIT_S = 86400.0
_MOST_ASKS = 12
"""With waits that double from ten minutes up to a day: about five days."""
_MOST_AT_ONCE = 500
NEVER_CONFIRMED = (
    "The destination stored it and never reported that it will keep it: does it know this node's "
    "AE title and address? Then `cxr-node queue retry`, which sends it again; or set storage_commitment = false."
)

_SENT_CLASS = case((deliveries.c.sent_sop_class_uid != "", deliveries.c.sent_sop_class_uid), else_=results.c.sop_class_uid)
SENT_UID = case((deliveries.c.sent_sop_instance_uid != "", deliveries.c.sent_sop_instance_uid), else_=results.c.sop_instance_uid)
"""The object at the destination: a report may have been sent in another class, under another UID."""


@dataclass(frozen=True)
class CommitmentRequest:
    """A request to send: a transaction and its references."""

    transaction_uid: str
    references: tuple[Reference, ...]


def next_request(engine: Engine, destination: str, timeout_s: float) -> CommitmentRequest | None:
    """Collect what a destination has stored and not yet committed in a new transaction; None if nothing is due.

    Recorded before the request is sent, since the report may arrive before the response. Without a report it is due again after
    `timeout_s`, then after twice as long each time.
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
            .values(state=DeliveryState.HELD, reason=NEVER_CONFIRMED)
            .returning(deliveries.c.id)
        )
        record_given_up(connection, given_up.scalars().all(), f"asked {_MOST_ASKS} times, never confirmed; held")
        cancel_superseded(connection, destination, false())
        rows = connection.execute(
            select(deliveries.c.id, deliveries.c.asks, _SENT_CLASS.label("sop_class_uid"), SENT_UID.label("sop_instance_uid"))
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
        connection.execute(
            insert(commitment_asks),
            [{"transaction_uid": transaction_uid, "delivery_id": row.id, "asked_at": now} for row in rows],
        )
    faults.point("commitment-noted")
    return CommitmentRequest(transaction_uid, tuple((row.sop_class_uid, row.sop_instance_uid) for row in rows))


def mark_unreached(engine: Engine, request: CommitmentRequest, reason: str, *, may_have_arrived: bool = False) -> None:
    """The destination was not reached. The request doesn't count and is due again.

    `may_have_arrived`: the request was on its way and its response is missing; a report under it counts.
    """
    with write(engine) as connection:
        connection.execute(
            update(deliveries)
            .where(deliveries.c.transaction_uid == request.transaction_uid, deliveries.c.state == DeliveryState.COMMITTING)
            .values(not_before=0, asks=deliveries.c.asks - 1, reason=reason)
        )
        if not may_have_arrived:
            close_requests(connection, commitment_asks.c.transaction_uid == request.transaction_uid)


def refused(engine: Engine, request: CommitmentRequest, reason: str) -> None:
    """The destination refused the request; it is sent again when its time is over."""
    with write(engine) as connection:
        connection.execute(
            update(deliveries)
            .where(deliveries.c.transaction_uid == request.transaction_uid, deliveries.c.state == DeliveryState.COMMITTING)
            .values(reason=reason)
        )
        close_requests(connection, commitment_asks.c.transaction_uid == request.transaction_uid)


def close_requests(connection: Connection, transactions: ColumnElement[bool]) -> None:
    """Forget requests that nothing is awaited of any more."""
    connection.execute(delete(commitment_asks).where(transactions))


def drop_requests(engine: Engine, destination: str) -> None:
    """The settings no longer ask a destination for commitment: what it has stored counts as sent, confirmed or not."""
    never_confirmed = and_(deliveries.c.state == DeliveryState.HELD, deliveries.c.reason == NEVER_CONFIRMED)
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
            .values(state=DeliveryState.SENT, transaction_uid="", reason="", missing=0)
            .returning(deliveries.c.id)
        )
        record_given_up(connection, changed.scalars().all(), "storage_commitment = false: no longer requested")


def record_given_up(connection: Connection, delivery_ids: Sequence[int], why: str) -> None:
    """Audit that the node no longer waits for a destination's commitment, one event for each object."""
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
