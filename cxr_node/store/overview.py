"""What people ask of the queue: counts for `status`, listings, and the few changes a person may make."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

from sqlalchemy import Engine, Select, func, select, update

from cxr_node.records import AuditEvent, DeliveryState, JobState, answer_of
from cxr_node.store import audit
from cxr_node.store.database import write
from cxr_node.store.schema import commitment_reports, deliveries, instances, jobs, results


def count_states(engine: Engine) -> dict[str, Any]:
    """`received`, `jobs` and `deliveries` by state, the oldest waiting ages in seconds, and the last successes.

    Times are UTC seconds since the epoch, or None where there is none.
    """
    with engine.connect() as connection:

        def by_state(table: Any, states: type[JobState] | type[DeliveryState]) -> dict[str, int]:
            counted = connection.execute(select(table.c.state, func.count()).group_by(table.c.state)).all()
            found = {str(state): int(count) for state, count in counted}
            return {state.value: found.get(state.value, 0) for state in states}

        def one(query: Select[Any]) -> Any:
            return connection.execute(query).scalar()

        now = time.time()
        oldest_job = one(select(func.min(jobs.c.created_at)).where(jobs.c.state.in_((JobState.NEW, JobState.RUNNING))))
        oldest_delivery = one(
            select(func.min(deliveries.c.created_at)).where(
                deliveries.c.state.in_((DeliveryState.WAITING, DeliveryState.SENDING, DeliveryState.COMMITTING))
            )
        )
        return {
            "received": {
                "instances": one(select(func.count()).select_from(instances)),
                "bytes": int(one(select(func.coalesce(func.sum(instances.c.size_bytes), 0)))),  # PostgreSQL's sum is a Decimal
                "kept_unanalysed": one(select(func.count()).select_from(instances).where(instances.c.note != "")),
                "last_at": one(select(func.max(instances.c.received_at))),
            },
            "jobs": by_state(jobs, JobState),
            "deliveries": by_state(deliveries, DeliveryState),
            "oldest_waiting_job_s": None if oldest_job is None else max(0.0, now - oldest_job),
            "oldest_waiting_delivery_s": None if oldest_delivery is None else max(0.0, now - oldest_delivery),
            "last_analysed_at": one(select(func.max(jobs.c.finished_at)).where(jobs.c.state == JobState.DONE)),
            "last_sent_at": one(select(func.max(deliveries.c.sent_at))),
        }


def last_day(engine: Engine) -> dict[str, Any]:
    """Of the jobs done in the last 24 hours: `answers`, how often each was given, and `warnings` with their `count`."""
    with engine.connect() as connection:
        since = time.time() - 24 * 3600
        done = select(jobs.c.findings).where(jobs.c.state == JobState.DONE, jobs.c.finished_at >= since)
        found = [json.loads(text) for text in connection.execute(done).scalars()]
    answers = Counter(answer_of(findings)["answer"] for findings in found)
    warnings = Counter(warning for findings in found for warning in findings.get("warnings", []))
    return {
        "answers": dict(answers.most_common()),
        "warnings": [{"count": count, "warning": warning} for warning, count in warnings.most_common()],
    }


def held_by_reason(engine: Engine) -> list[dict[str, Any]]:
    """What waits for a person: `what` (jobs, or deliveries to a destination), `count` and `reason`, the most first."""
    found = []
    with engine.connect() as connection:
        count = func.count()
        for reason, number in connection.execute(
            select(jobs.c.reasons, count).where(jobs.c.state == JobState.HELD).group_by(jobs.c.reasons)
        ):
            found.append({"what": "jobs", "count": number, "reason": " ".join(json.loads(reason))})
        for name, reason, number in connection.execute(
            select(deliveries.c.destination, deliveries.c.reason, count)
            .where(deliveries.c.state == DeliveryState.HELD)
            .group_by(deliveries.c.destination, deliveries.c.reason)
        ):
            found.append({"what": f"deliveries to {name}", "count": number, "reason": reason})
        for name, reason, number in connection.execute(
            select(commitment_reports.c.ae_title, commitment_reports.c.reason, count)
            .where(commitment_reports.c.state == DeliveryState.HELD)
            .group_by(commitment_reports.c.ae_title, commitment_reports.c.reason)
        ):
            found.append({"what": f"commitment reports to {name}", "count": number, "reason": reason})
    return sorted(found, key=lambda row: -row["count"])


def list_jobs(
    engine: Engine, *, state: str = "", study: str = "", sender: str = "", limit: int | None = None
) -> list[dict[str, Any]]:
    """Jobs that match all that is given, oldest first."""
    query = _jobs_query()
    if state:
        query = query.where(jobs.c.state == state)
    if study:
        query = query.where(instances.c.study_instance_uid == study)
    if sender:
        query = query.where(instances.c.calling_ae_title == sender)
    return [_as_job(row) for row in _rows(engine, query.order_by(jobs.c.id).limit(limit))]


def list_deliveries(
    engine: Engine,
    *,
    state: str = "",
    study: str = "",
    sender: str = "",
    destination: str = "",
    job_id: int | None = None,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Deliveries that match all that is given, oldest first."""
    query = (
        select(
            deliveries.c.id,
            results.c.job_id,
            deliveries.c.destination,
            results.c.kind,
            deliveries.c.state,
            deliveries.c.attempts,
            deliveries.c.status,
            deliveries.c.reason,
            deliveries.c.not_before,
            deliveries.c.created_at,
            deliveries.c.sent_at,
            results.c.sop_instance_uid,
            results.c.path,
            instances.c.study_instance_uid,
            instances.c.calling_ae_title.label("sender"),
        )
        .join(results, deliveries.c.result_id == results.c.id)
        .join(jobs, results.c.job_id == jobs.c.id)
        .join(instances, jobs.c.instance_id == instances.c.id)
    )
    for column, value in (
        (deliveries.c.state, state),
        (instances.c.study_instance_uid, study),
        (instances.c.calling_ae_title, sender),
        (deliveries.c.destination, destination),
    ):
        if value:
            query = query.where(column == value)
    if job_id is not None:
        query = query.where(results.c.job_id == job_id)
    return _rows(engine, query.order_by(deliveries.c.id).limit(limit))


def show_job(engine: Engine, job_id: int) -> dict[str, Any] | None:
    """One job with its results and deliveries, or None."""
    rows = _rows(engine, _jobs_query().where(jobs.c.id == job_id))
    if not rows:
        return None
    made = select(results.c.kind, results.c.sop_instance_uid, results.c.path, results.c.size_bytes)
    return {
        **_as_job(rows[0]),
        "results": _rows(engine, made.where(results.c.job_id == job_id)),
        "deliveries": list_deliveries(engine, job_id=job_id),
    }


def retry_job(engine: Engine, job_id: int, user: str) -> bool:
    """Put a held, rejected or cancelled job back into the queue; False if it is in another state."""
    return _change_job(engine, job_id, user, "job-retried", (JobState.HELD, JobState.REJECTED, JobState.CANCELLED), JobState.NEW)


def cancel_job(engine: Engine, job_id: int, user: str) -> bool:
    """Take a waiting or held job out of the queue; False if it is in another state."""
    return _change_job(engine, job_id, user, "job-cancelled", (JobState.NEW, JobState.HELD), JobState.CANCELLED)


def retry_delivery(engine: Engine, delivery_id: int, user: str) -> bool:
    """Make a held, cancelled or waiting delivery due now; False if it is in another state."""
    states = (DeliveryState.HELD, DeliveryState.CANCELLED, DeliveryState.WAITING)
    return _change_delivery(engine, delivery_id, user, "delivery-retried", states, DeliveryState.WAITING)


def cancel_delivery(engine: Engine, delivery_id: int, user: str) -> bool:
    """Give up a waiting or held delivery; False if it is in another state."""
    states = (DeliveryState.WAITING, DeliveryState.COMMITTING, DeliveryState.HELD)
    return _change_delivery(engine, delivery_id, user, "delivery-cancelled", states, DeliveryState.CANCELLED)


def _change_job(engine: Engine, job_id: int, user: str, event: str, states: tuple[JobState, ...], new_state: JobState) -> bool:
    with write(engine) as connection:
        changed = connection.execute(
            update(jobs)
            .where(jobs.c.id == job_id, jobs.c.state.in_(states))
            .values(
                state=new_state,
                attempts=0,
                not_before=0,
                reasons="[]" if new_state == JobState.NEW else jobs.c.reasons,
                finished_at=None if new_state == JobState.NEW else time.time(),
            )
            .returning(jobs.c.instance_id)
        ).scalar()
        if changed is None:
            return False
        source = connection.execute(select(instances).where(instances.c.id == changed)).mappings().one()
        audit.add(
            connection,
            AuditEvent(
                event,
                user=user,
                patient_id=source["patient_id"],
                study_instance_uid=source["study_instance_uid"],
                sop_instance_uid=source["sop_instance_uid"],
                detail=f"job {job_id}",
            ),
        )
    return True


def _change_delivery(
    engine: Engine, delivery_id: int, user: str, event: str, states: tuple[DeliveryState, ...], new_state: DeliveryState
) -> bool:
    with write(engine) as connection:
        changed = connection.execute(
            update(deliveries)
            .where(deliveries.c.id == delivery_id, deliveries.c.state.in_(states))
            .values(state=new_state, attempts=0, asks=0, not_before=0)
            .returning(deliveries.c.destination, deliveries.c.result_id)
        ).one_or_none()
        if changed is None:
            return False
        result = connection.execute(
            select(instances.c.patient_id, instances.c.study_instance_uid, results.c.sop_instance_uid)
            .select_from(results)
            .join(jobs, results.c.job_id == jobs.c.id)
            .join(instances, jobs.c.instance_id == instances.c.id)
            .where(results.c.id == changed.result_id)
        ).one()
        detail = f"delivery {delivery_id} to {changed.destination}"
        audit.add(connection, AuditEvent(event, user=user, **result._mapping, detail=detail))
    return True


def _jobs_query() -> Select[Any]:
    return select(
        jobs.c.id,
        jobs.c.state,
        jobs.c.attempts,
        jobs.c.reasons,
        jobs.c.findings,
        jobs.c.model_version,
        jobs.c.not_before,
        jobs.c.created_at,
        jobs.c.finished_at,
        instances.c.sop_instance_uid,
        instances.c.revision,
        instances.c.study_instance_uid,
        instances.c.calling_ae_title.label("sender"),
        instances.c.host,
        instances.c.path,
    ).join(instances, jobs.c.instance_id == instances.c.id)


def _as_job(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "reasons": json.loads(row["reasons"]), "findings": json.loads(row["findings"])}


def _rows(engine: Engine, query: Select[Any]) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]
