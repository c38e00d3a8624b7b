"""Storage commitment of results: records the reports of destinations, and their effect on deliveries."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import structlog
from sqlalchemy import Connection, Engine, and_, false, or_, select, true, update

from cxr_node.commitment.datasets import NO_SUCH_INSTANCE, PROCESSING_FAILURE, REASONS, read_report
from cxr_node.commitment.requests import NEVER_CONFIRMED, SENT_UID, close_requests, record_given_up
from cxr_node.logs import exception_text
from cxr_node.records import AuditEvent, DeliveryState
from cxr_node.store.audit_log import audit
from cxr_node.store.backoff import backoff_s
from cxr_node.store.database import write
from cxr_node.store.queue.corrections import cancel_superseded
from cxr_node.store.schema import commitment_asks, deliveries, instances, jobs, results

log = structlog.get_logger()

_ASK_AGAIN_S = 60.0
_MOST_RESENDS = 20
_FIRST_RESEND_WAIT_S, _LONGEST_RESEND_WAIT_S = 5.0, 3600.0


def record_report(
    engine: Engine, content: bytes, *, explicit: bool, timeouts: Mapping[str, float], caller: tuple[str, str] = ("", "")
) -> int:
    """Take an N-EVENT-REPORT of a destination; the status to answer with.

    Args:
        engine: the database.
        content: the Event Information as it came, little endian.
        explicit: whether its VRs are explicit.
        timeouts: of the destinations that may be reported for by who calls; see `note_report`.
        caller: AE title and address of who reports, for the audit log.
    """
    try:
        transaction_uid, committed, failed = read_report(content, explicit=explicit)
        found = note_report(engine, transaction_uid, committed, failed, timeouts, of=list(timeouts), caller=caller)
    except Exception as error:
        log.warning("storage commitment report not recorded", reason=exception_text(error))
        return PROCESSING_FAILURE
    log.info("commitment reported", transaction_uid=transaction_uid, committed=len(committed), failed=len(failed), known=found)
    return 0x0000


def note_report(
    engine: Engine,
    transaction_uid: str,
    committed: Collection[str],
    failed: Mapping[str, int],
    timeouts: Mapping[str, float] | None = None,
    *,
    of: Collection[str] | None = None,
    caller: tuple[str, str] = ("", ""),
) -> int:
    """Record a destination's report on an open transaction, however old; return how many deliveries it was about.

    Committed deliveries become sent. For missing objects the request is repeated once: they may not be filed yet.
    Objects that it didn't keep are sent again with growing delays, and held in the end.

    Args:
        engine: the database.
        transaction_uid: of the request.
        committed: SOP instance UIDs.
        failed: SOP instance UIDs and their Failure Reasons.
        timeouts: seconds that each destination has for a report; the request is repeated after the same time.
        of: the destinations that it may be about; None: any.
        caller: AE title and address of who reports, for the audit log; empty: it names the destination.
    """
    with write(engine) as connection:
        rows = _reported_on(connection, transaction_uid, of)
        for row in rows:
            uid = row.sent_uid
            is_committed = uid in committed
            if not is_committed and uid not in failed:
                continue  # it forgot this one, and may tell of it yet
            of_this = commitment_asks.c.delivery_id == row.id
            close_requests(
                connection, of_this if is_committed else and_(of_this, commitment_asks.c.transaction_uid == transaction_uid)
            )
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
            audit.add(connection, _event(row, caller, reason))
            if values["state"] == DeliveryState.HELD:
                record_given_up(connection, [row.id], f"sent {row.attempts} times, never kept; held")
        for destination in {row.destination for row in rows}:
            cancel_superseded(connection, destination, false())
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
            "reason": f"{reason} The node asks again.",
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


def _reported_on(connection: Connection, transaction_uid: str, of: Collection[str] | None) -> Sequence[Any]:
    """The deliveries of a transaction that wait for a report."""
    return connection.execute(
        select(
            deliveries.c.id,
            deliveries.c.attempts,
            deliveries.c.missing,
            deliveries.c.destination,
            results.c.sop_instance_uid,
            SENT_UID.label("sent_uid"),
            instances.c.patient_id,
            instances.c.study_instance_uid,
        )
        .join(commitment_asks, commitment_asks.c.delivery_id == deliveries.c.id)
        .join(results, deliveries.c.result_id == results.c.id)
        .join(jobs, results.c.job_id == jobs.c.id)
        .join(instances, jobs.c.instance_id == instances.c.id)
        .where(
            commitment_asks.c.transaction_uid == transaction_uid,
            true() if of is None else deliveries.c.destination.in_(of),
            or_(
                deliveries.c.state == DeliveryState.COMMITTING,
                and_(deliveries.c.state == DeliveryState.HELD, deliveries.c.reason == NEVER_CONFIRMED),
            ),
        )
        .with_for_update(of=deliveries)  # reported twice at once, it is noted once
    ).all()


def _event(row: Any, caller: tuple[str, str], reason: str) -> AuditEvent:
    """What a report says of one delivery; `reason`: why its object isn't kept, empty if it is."""
    return AuditEvent(
        "result-not-kept" if reason else "result-committed",
        "failure" if reason else "success",
        user=caller[0] or row.destination,
        host=caller[1],
        patient_id=row.patient_id,
        study_instance_uid=row.study_instance_uid,
        sop_instance_uid=row.sop_instance_uid,
        detail=f"{row.destination}: {reason}" if reason else f"destination {row.destination}",
    )
