"""Storage commitment of our results: what destinations have been asked, and what they have confirmed."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from pydicom.uid import generate_uid
from sqlalchemy import ColumnElement, Connection, Engine, and_, bindparam, case, delete, insert, or_, select, update

from cxr_node import faults
from cxr_node.commitment import NO_SUCH_INSTANCE, PROCESSING_FAILURE, REASONS, read_report
from cxr_node.logs import explain
from cxr_node.records import AuditEvent, DeliveryState
from cxr_node.references import Reference
from cxr_node.store import audit
from cxr_node.store.backoff import backoff_s
from cxr_node.store.database import write
from cxr_node.store.schema import commitment_asks, deliveries, instances, jobs, results

log = structlog.get_logger()

_LONGEST_WAIT_S = 86400.0
_MOST_ASKS = 12
"""With waits that double from ten minutes up to a day: about five days."""
_ASK_AGAIN_S = 60.0
_MOST_AT_ONCE = 500
_MOST_RESENDS = 20
_FIRST_RESEND_WAIT_S, _LONGEST_RESEND_WAIT_S = 5.0, 3600.0
_NEVER_CONFIRMED = (
    "The destination stored it, and never reported that it will keep it, however often it was asked: does it know this node's "
    "AE title and address? Then `cxr-node queue retry`, which sends it again; or set storage_commitment = false."
)

_SENT_CLASS = case((deliveries.c.sent_sop_class_uid != "", deliveries.c.sent_sop_class_uid), else_=results.c.sop_class_uid)
_SENT_UID = case((deliveries.c.sent_sop_instance_uid != "", deliveries.c.sent_sop_instance_uid), else_=results.c.sop_instance_uid)
"""What the destination has, and is asked about: a report may have gone as another class, under another UID."""


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
            select(deliveries.c.id, deliveries.c.asks, _SENT_CLASS.label("sop_class_uid"), _SENT_UID.label("sop_instance_uid"))
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
    return Asking(transaction_uid, tuple((row.sop_class_uid, row.sop_instance_uid) for row in rows))


def not_asked(engine: Engine, asking: Asking, reason: str, *, may_have_arrived: bool = False) -> None:
    """The request could not be made: the destination was not reached. It doesn't count, and is due again.

    `may_have_arrived`: the request was on its way and its response is missing; a report under it counts.
    """
    with write(engine) as connection:
        connection.execute(
            update(deliveries)
            .where(deliveries.c.transaction_uid == asking.transaction_uid, deliveries.c.state == DeliveryState.COMMITTING)
            .values(not_before=0, asks=deliveries.c.asks - 1, reason=reason)
        )
        if not may_have_arrived:
            _close(connection, commitment_asks.c.transaction_uid == asking.transaction_uid)


def refused(engine: Engine, asking: Asking, reason: str) -> None:
    """The destination refused the request itself; it is made again when its time is over."""
    with write(engine) as connection:
        connection.execute(
            update(deliveries)
            .where(deliveries.c.transaction_uid == asking.transaction_uid, deliveries.c.state == DeliveryState.COMMITTING)
            .values(reason=reason)
        )
        _close(connection, commitment_asks.c.transaction_uid == asking.transaction_uid)


def take_report(engine: Engine, content: bytes, *, explicit: bool, timeouts: Mapping[str, float]) -> int:
    """Take an N-EVENT-REPORT of a destination; the status to answer with.

    Args:
        engine: the database.
        content: the Event Information as it came, little endian.
        explicit: whether its VRs are explicit.
        timeouts: see `note_report`.
    """
    try:
        transaction_uid, committed, failed = read_report(content, explicit=explicit)
        found = note_report(engine, transaction_uid, committed, failed, timeouts)
    except Exception as error:
        log.warning("report of storage commitment not taken", reason=explain(error))
        return PROCESSING_FAILURE
    log.info("commitment reported", transaction_uid=transaction_uid, committed=len(committed), failed=len(failed), known=found)
    return 0x0000


def note_report(
    engine: Engine,
    transaction_uid: str,
    committed: Collection[str],
    failed: Mapping[str, int],
    timeouts: Mapping[str, float] | None = None,
) -> int:
    """Write down what a destination reported under a transaction that is open, however old; how many deliveries it was about.

    What it committed is sent. Of what it says that it doesn't have, it is asked once more: it may not have filed it yet. What
    it didn't keep is sent again, after a wait that grows with each time, and held in the end.

    Args:
        engine: the database.
        transaction_uid: of the request.
        committed: SOP instance UIDs.
        failed: SOP instance UIDs and their Failure Reasons.
        timeouts: destination: how long it is given for a report, in seconds; it is asked once more after as long.
    """
    with write(engine) as connection:
        rows = connection.execute(
            select(
                deliveries.c.id,
                deliveries.c.attempts,
                deliveries.c.missing,
                deliveries.c.destination,
                results.c.sop_instance_uid,
                _SENT_UID.label("sent_uid"),
                instances.c.patient_id,
                instances.c.study_instance_uid,
            )
            .join(commitment_asks, commitment_asks.c.delivery_id == deliveries.c.id)
            .join(results, deliveries.c.result_id == results.c.id)
            .join(jobs, results.c.job_id == jobs.c.id)
            .join(instances, jobs.c.instance_id == instances.c.id)
            .where(
                commitment_asks.c.transaction_uid == transaction_uid,
                or_(
                    deliveries.c.state == DeliveryState.COMMITTING,
                    and_(deliveries.c.state == DeliveryState.HELD, deliveries.c.reason == _NEVER_CONFIRMED),
                ),
            )
            .with_for_update(of=deliveries)  # reported twice at once, it is noted once
        ).all()
        for row in rows:
            uid = row.sent_uid
            is_committed = uid in committed
            if not is_committed and uid not in failed:
                continue  # it forgot this one, and may tell of it yet
            of_this = commitment_asks.c.delivery_id == row.id
            _close(connection, of_this if is_committed else and_(of_this, commitment_asks.c.transaction_uid == transaction_uid))
            reason = "" if is_committed else _not_kept(failed[uid])
            values: dict[str, Any] = {
                "transaction_uid": "",
                "reason": "",
                "state": DeliveryState.SENT,
                "committed_at": time.time(),
                "missing": 0,
            }
            if not is_committed:
                timeout_s = (timeouts or {}).get(row.destination, _ASK_AGAIN_S)
                values = _after_failure(connection, row, failed[uid], reason, min(timeout_s, _ASK_AGAIN_S))
            connection.execute(update(deliveries).where(deliveries.c.id == row.id).values(**values))
            audit.add(
                connection,
                AuditEvent(
                    "result-committed" if is_committed else "result-not-kept",
                    "success" if is_committed else "failure",
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


def _after_failure(connection: Connection, row: Any, code: int, reason: str, ask_again_s: float) -> dict[str, Any]:
    """What becomes of a delivery whose object a destination says it didn't keep."""
    now = time.time()
    if code == NO_SUCH_INSTANCE and row.missing == 0:
        is_open = select(commitment_asks.c.id).where(commitment_asks.c.delivery_id == row.id).limit(1)
        values: dict[str, Any] = {
            "state": DeliveryState.COMMITTING,
            "missing": 1,
            "asks": 0,
            "reason": f"{reason} It is asked again.",
        }
        if connection.execute(is_open).first() is None:  # else the report under a later transaction tells
            values["not_before"] = now + ask_again_s
        return values
    return {
        "state": DeliveryState.HELD if row.attempts >= _MOST_RESENDS else DeliveryState.WAITING,
        "transaction_uid": "",
        "asks": 0,
        "missing": 0,
        "reason": reason,
        "not_before": now + backoff_s(row.attempts, _FIRST_RESEND_WAIT_S, _LONGEST_RESEND_WAIT_S),
    }


def _not_kept(code: int) -> str:
    return f"It stored the object and didn't keep it: {REASONS.get(code, 'failure')} (0x{code:04X})."


def _close(connection: Connection, transactions: ColumnElement[bool]) -> None:
    connection.execute(delete(commitment_asks).where(transactions))


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
            .values(state=DeliveryState.SENT, transaction_uid="", reason="", missing=0)
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
