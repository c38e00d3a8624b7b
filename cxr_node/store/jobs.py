"""The queue of analyses: claimed and ended by work; `admissions` fills it.

A claim is one transaction under a lease; a lapsed lease makes the job claimable again; every change of state is guarded
by the state it leaves, so that a worker which lost its lease changes nothing.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine, and_, func, insert, or_, select, update

from cxr_node import faults
from cxr_node.records import AuditEvent, DeliveryState, Job, JobState, Result, ResultKind, answer_of
from cxr_node.store import audit
from cxr_node.store.backoff import backoff_s
from cxr_node.store.database import write
from cxr_node.store.schema import deliveries, instances, jobs, results

_FIRST_WAIT_S, _LONGEST_WAIT_S = 2.0, 300.0


def claim(engine: Engine, owner: str, limit: int, lease_s: float, max_attempts: int) -> list[Job]:
    """Take up to `limit` jobs that are due, for `lease_s` seconds.

    A job whose lease lapsed `max_attempts` times (its worker died each time) is held instead. One that was tried
    before is taken alone: if it kills its worker, it takes no other with it.
    """
    now = time.time()
    with engine.connect() as connection:  # an idle worker looks without taking the write lock
        if connection.execute(select(jobs.c.id).where(_due(now)).limit(1)).first() is None:
            return []
    with write(engine) as connection:
        _hold_exhausted(connection, now, max_attempts)
        due = select(jobs.c.id, jobs.c.attempts).where(_due(now)).order_by(jobs.c.priority.desc(), jobs.c.id).limit(limit)
        if engine.dialect.name == "postgresql":
            due = due.with_for_update(skip_locked=True)
        found = connection.execute(due).all()
        again = found[:1] if found and found[0].attempts else ()
        chosen = [row.id for row in again or itertools.takewhile(lambda row: not row.attempts, found)]
        claimed = connection.execute(
            update(jobs)
            .where(jobs.c.id.in_(chosen))
            .values(state=JobState.RUNNING, attempts=jobs.c.attempts + 1, lease_owner=owner, lease_until=now + lease_s)
            .returning(jobs.c.id)
        )
        ids = list(claimed.scalars())
        rows = connection.execute(
            select(jobs.c.id, jobs.c.attempts, jobs.c.instance_id, instances)
            .join(instances, jobs.c.instance_id == instances.c.id)
            .where(jobs.c.id.in_(ids))
            .order_by(jobs.c.priority.desc(), jobs.c.id)
        ).mappings()
        taken = [
            Job(
                id=row[jobs.c.id],
                instance_id=row[jobs.c.instance_id],
                path=row["path"],
                sop_instance_uid=row["sop_instance_uid"],
                revision=row["revision"],
                study_instance_uid=row["study_instance_uid"],
                patient_id=row["patient_id"],
                calling_ae_title=row["calling_ae_title"],
                attempts=row[jobs.c.attempts],
            )
            for row in rows
        ]
    faults.point("jobs-claimed")
    return taken


def renew(engine: Engine, owner: str, claimed: Sequence[Job], lease_s: float) -> None:
    """Keep claimed jobs for another `lease_s` seconds."""
    with write(engine) as connection:
        connection.execute(
            update(jobs).where(jobs.c.id.in_([job.id for job in claimed]), _mine(owner)).values(lease_until=time.time() + lease_s)
        )


def finish(
    engine: Engine,
    owner: str,
    job: Job,
    *,
    findings: dict[str, Any],
    model_version: str,
    made: Sequence[Result],
    destinations: dict[str, tuple[ResultKind, ...]],
) -> bool:
    """End a job with its results and a delivery row for each result and destination, all or none.

    Args:
        engine: the database.
        owner: the worker; if it lost the lease, nothing changes and False is returned.
        job: the job.
        findings: what the network said, as JSON.
        model_version: of the model that said it.
        made: the results, whose files are safe on disk.
        destinations: name to the kinds it is sent.
    """
    with write(engine) as connection:
        if not _end(connection, owner, job, JobState.DONE, findings=json.dumps(findings), model_version=model_version):
            return False
        _add_results(connection, job, made, destinations)
        audit.add(connection, _event("job-done", job, detail=answer_of(findings)["answer"]))
    faults.point("job-finished", job.sop_instance_uid)
    return True


def reject(
    engine: Engine,
    owner: str,
    job: Job,
    reasons: Sequence[str],
    *,
    made: Sequence[Result] = (),
    destinations: dict[str, tuple[ResultKind, ...]] | None = None,
) -> bool:
    """End a job by the input's fault, with the notices that were made of it, if any; False if the lease was lost."""
    with write(engine) as connection:
        if not _end(connection, owner, job, JobState.REJECTED, reasons=json.dumps(list(reasons))):
            return False
        _add_results(connection, job, made, destinations or {})
        audit.add(connection, _event("job-rejected", job, "rejected", "; ".join(reasons)))
    return True


def fail(engine: Engine, owner: str, job: Job, reason: str, *, max_attempts: int) -> bool:
    """Note a failure of ours: tried again after a growing wait, held after `max_attempts`; False if the lease was lost."""
    held = job.attempts >= max_attempts
    with write(engine) as connection:
        changed = connection.execute(
            update(jobs)
            .where(jobs.c.id == job.id, _mine(owner))
            .values(
                state=JobState.HELD if held else JobState.NEW,
                not_before=time.time() + backoff_s(job.attempts, _FIRST_WAIT_S, _LONGEST_WAIT_S),
                reasons=json.dumps([reason]),
                lease_owner="",
                lease_until=0,
                finished_at=time.time() if held else None,
            )
        ).rowcount
        if changed:
            audit.add(connection, _event("job-held" if held else "job-failed", job, "failure", reason))
    return bool(changed)


def give_back(engine: Engine, owner: str, claimed: Sequence[Job], reason: str = "") -> None:
    """Return jobs that were not begun, or that the node's own trouble (`reason`) stopped; the attempt isn't counted."""
    with write(engine) as connection:
        connection.execute(
            update(jobs)
            .where(jobs.c.id.in_([job.id for job in claimed]), _mine(owner))
            .values(
                state=JobState.NEW,
                attempts=jobs.c.attempts - 1,
                reasons=json.dumps([reason] if reason else []),
                lease_owner="",
                lease_until=0,
            )
        )


def _due(now: float) -> Any:
    return or_(
        and_(
            jobs.c.state == JobState.NEW,
            # a wait longer than any: the clock was ahead when it was written, and has been set back since
            or_(jobs.c.not_before <= now, jobs.c.not_before > now + _LONGEST_WAIT_S),
        ),
        and_(jobs.c.state == JobState.RUNNING, jobs.c.lease_until < now),
    )


def _mine(owner: str) -> Any:
    return and_(jobs.c.state == JobState.RUNNING, jobs.c.lease_owner == owner)


def _hold_exhausted(connection: Connection, now: float, max_attempts: int) -> None:
    reason = (
        f"The worker died {max_attempts} times on this image: it crashed, ran longer than inference.job_timeout_s, or used "
        "more memory than there is; the worker's log says which. Inspect the image, then `cxr-node queue retry`."
    )
    held = connection.execute(
        update(jobs)
        .where(jobs.c.state == JobState.RUNNING, jobs.c.lease_until < now, jobs.c.attempts >= max_attempts)
        .values(state=JobState.HELD, reasons=json.dumps([reason]), lease_owner="", lease_until=0, finished_at=now)
        .returning(jobs.c.instance_id)
    )
    instance_ids = list(held.scalars())
    if instance_ids:
        rows = connection.execute(select(instances).where(instances.c.id.in_(instance_ids))).mappings()
        audit.add(
            connection,
            *(
                AuditEvent(
                    "job-held",
                    "failure",
                    patient_id=row["patient_id"],
                    study_instance_uid=row["study_instance_uid"],
                    sop_instance_uid=row["sop_instance_uid"],
                    detail=reason,
                )
                for row in rows
            ),
        )


def _end(connection: Connection, owner: str, job: Job, state: JobState, **values: Any) -> bool:
    return bool(
        connection.execute(
            update(jobs)
            .where(jobs.c.id == job.id, _mine(owner))
            .values(state=state, finished_at=time.time(), lease_owner="", lease_until=0, **values)
        ).rowcount
    )


def _add_results(
    connection: Connection, job: Job, made: Sequence[Result], destinations: dict[str, tuple[ResultKind, ...]]
) -> None:
    """A row for each result, and one for its delivery to each destination that takes its kind."""
    now = time.time()
    for result in made:
        result_id = _upsert_result(connection, job, result, now)
        for name, kinds in destinations.items():
            if result.kind in kinds:
                _add_delivery(connection, result_id, name, now)


def _upsert_result(connection: Connection, job: Job, result: Result, now: float) -> int:
    """A retried job makes the same UIDs again: its row is found and refreshed rather than doubled."""
    known = select(results.c.id).where(results.c.sop_instance_uid == result.sop_instance_uid)
    values = {"path": result.path, "size_bytes": result.size_bytes, "created_at": now, "removed_at": None}
    result_id: int | None = connection.execute(known).scalar()
    if result_id is not None:
        connection.execute(update(results).where(results.c.id == result_id).values(**values))
        return result_id
    added = insert(results).values(
        job_id=job.id,
        kind=result.kind,
        sop_instance_uid=result.sop_instance_uid,
        sop_class_uid=result.sop_class_uid,
        transfer_syntax_uid=result.transfer_syntax_uid,
        **values,
    )
    new_id: int = connection.execute(added.returning(results.c.id)).scalar_one()
    return new_id


def _add_delivery(connection: Connection, result_id: int, destination: str, now: float) -> None:
    this = and_(deliveries.c.result_id == result_id, deliveries.c.destination == destination)
    if connection.execute(select(func.count()).where(this)).scalar():
        connection.execute(  # its file may have been gone; now it is there again
            update(deliveries)
            .where(this, deliveries.c.state == DeliveryState.HELD)
            .values(state=DeliveryState.WAITING, attempts=0, not_before=0)
        )
        return
    connection.execute(
        insert(deliveries).values(
            result_id=result_id,
            destination=destination,
            state=DeliveryState.WAITING,
            attempts=0,
            not_before=0,
            lease_owner="",
            lease_until=0,
            reason="",
            created_at=now,
        )
    )


def _event(event: str, job: Job, outcome: str = "success", detail: str = "") -> AuditEvent:
    return AuditEvent(
        event,
        outcome,
        user=job.calling_ae_title,
        patient_id=job.patient_id,
        study_instance_uid=job.study_instance_uid,
        sop_instance_uid=job.sop_instance_uid,
        detail=detail,
    )
