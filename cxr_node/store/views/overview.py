"""Counts, listings and details of jobs and deliveries for `status` and `queue`."""

from __future__ import annotations

import json
import time
from typing import Any

from sqlalchemy import Engine, Select, func, select

from cxr_node.records import DeliveryState, JobState, answer_of
from cxr_node.store.queue import changes
from cxr_node.store.queue.selection import Selection, of_deliveries, of_jobs
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
            "last_analysed_at": one(
                select(func.max(jobs.c.finished_at)).where(jobs.c.state == JobState.DONE, jobs.c.finished_at.is_not(None))
            ),
            "last_sent_at": one(select(func.max(deliveries.c.sent_at))),
        }


def held_by_reason(engine: Engine) -> list[dict[str, Any]]:
    """What waits for an operator: `what` (jobs, or deliveries to a destination), `count` and `reason`, the most first."""
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


def list_jobs(engine: Engine, *, limit: int | None = None, after: int = 0, **chosen: Any) -> list[dict[str, Any]]:
    """Jobs that match all that is given (see `Selection`), oldest first; `after`: only those with higher numbers."""
    query = _jobs_query().where(of_jobs(Selection(**chosen)))
    if after:
        query = query.where(jobs.c.id > after)
    return [_as_job(row) for row in _rows(engine, query.order_by(jobs.c.id).limit(limit))]


def list_deliveries(
    engine: Engine, *, job_id: int | None = None, limit: int | None = None, after: int = 0, **chosen: Any
) -> list[dict[str, Any]]:
    """Deliveries that match all that is given (see `Selection`), oldest first; `after`: only those with higher numbers."""
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
            deliveries.c.sent_sop_class_uid,
            deliveries.c.sent_sop_instance_uid,
            instances.c.study_instance_uid,
            instances.c.patient_id,
            instances.c.accession_number,
            instances.c.received_at,
            instances.c.calling_ae_title.label("sender"),
            jobs.c.findings,
            jobs.c.state.label("job_state"),
        )
        .join(results, deliveries.c.result_id == results.c.id)
        .join(jobs, results.c.job_id == jobs.c.id)
        .join(instances, jobs.c.instance_id == instances.c.id)
        .where(of_deliveries(Selection(**chosen)))
    )
    if job_id is not None:
        query = query.where(results.c.job_id == job_id)
    if after:
        query = query.where(deliveries.c.id > after)
    rows = _rows(engine, query.order_by(deliveries.c.id).limit(limit))
    return [{**row, **_answer(row.pop("job_state"), json.loads(row.pop("findings")))} for row in rows]


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
    """Put a job back into the queue; False if it is in progress, not there, or its image is gone."""
    return bool(changes.retry_jobs(engine, Selection(numbers=(job_id,)), user).changed)


def cancel_job(engine: Engine, job_id: int, user: str) -> bool:
    """Take a waiting or held job out of the queue; False if it is in another state."""
    return bool(changes.cancel_jobs(engine, Selection(numbers=(job_id,)), user).changed)


def retry_delivery(engine: Engine, delivery_id: int, user: str) -> bool:
    """Make a delivery due now; False if it is in progress or not there."""
    return bool(changes.retry_deliveries(engine, Selection(numbers=(delivery_id,)), user).changed)


def cancel_delivery(engine: Engine, delivery_id: int, user: str) -> bool:
    """Give up a waiting or held delivery; False if it is in another state."""
    return bool(changes.cancel_deliveries(engine, Selection(numbers=(delivery_id,)), user).changed)


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
        instances.c.patient_id,
        instances.c.accession_number,
        instances.c.received_at,
        instances.c.calling_ae_title.label("sender"),
        instances.c.host,
        instances.c.path,
    ).join(instances, jobs.c.instance_id == instances.c.id)


def _as_job(row: dict[str, Any]) -> dict[str, Any]:
    findings = json.loads(row["findings"])
    return {**row, "reasons": json.loads(row["reasons"]), "findings": findings, **_answer(row["state"], findings)}


def _rows(engine: Engine, query: Select[Any]) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def _answer(state: str, findings: dict[str, Any]) -> dict[str, str]:
    """`answer` and `likeliest` of a job that is done; of another they are empty, whatever it said before."""
    return answer_of(findings if state == JobState.DONE else {})
