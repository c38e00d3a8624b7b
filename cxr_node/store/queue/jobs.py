"""The queue of analyses: claimed and ended by work; `admissions` fills it.

A claim is one transaction under a lease. A lapsed lease makes the job claimable again. Every change of state is guarded by the
old state, so that a worker that lost its lease changes nothing.

Over 300 lines: the ways a job ends, and the rows that it leaves, are one guarded transaction each.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, and_, func, insert, or_, select, update

from cxr_node.records import AuditEvent, DeliveryState, Job, JobState, Result, ResultKind, answer_in_words, answer_of
from cxr_node.store import faults
from cxr_node.store.audit_log import audit
from cxr_node.store.backoff import backoff_s
from cxr_node.store.database import write
from cxr_node.store.files.blobs import Blobs, discard
from cxr_node.store.queue import fair_share, leases, resend
from cxr_node.store.schema import deliveries, instances, jobs, results

_FIRST_WAIT_S, _LONGEST_WAIT_S = 2.0, 300.0
_LONG_S, _OLD_AMONG_NEW = 600.0, 0.1
"""A job that was tried before and has waited for so long comes before what is new in this share of the claims of a worker without
other jobs; of a worker with others, in this share of claims nothing is taken, so that it comes to have none."""
_MADE_ANEW = "Its job was repeated and made another object in its place."


def claim(
    engine: Engine,
    owner: str,
    limit: int,
    lease_s: float,
    max_attempts: int,
    spool: str | None = None,
    *,
    only_new: bool = False,
) -> list[Job]:
    """Take up to `limit` jobs that are due, for `lease_s` seconds.

    A job whose lease lapsed `max_attempts` times (its worker died each time) is held instead. Among those of one priority each
    sender's address has its turn, however many it has sent. What was tried before comes after all that never was, and alone:
    if it kills its worker, it takes no other with it. Where there is always something new, what has waited long enough is
    taken now and then, so that it comes to an end. An image that is in the spool of another host alone waits until it is
    uploaded; `spool` is this host's, empty if it has none, None where no host can have one. `only_new`: none that was tried
    before, for a worker that still has others, with which such a job must not die.
    """
    now = time.time()
    with engine.connect() as connection:  # an idle worker looks without taking the write lock
        due_now = _due(now, leases.lapsed(connection, jobs, lease_s))
        if connection.execute(select(jobs.c.id).where(due_now, fair_share.is_near(spool)).limit(1)).first() is None:
            return []
    with write(engine) as connection:
        lapsed = leases.lapsed(connection, jobs, lease_s)
        _hold_exhausted(connection, now, lapsed, max_attempts)
        chosen = _choose(connection, lapsed, now, limit, spool, only_new=only_new)
        if not chosen:
            return []
        claimed = connection.execute(
            update(jobs)
            .where(jobs.c.id.in_(chosen))
            .values(
                state=JobState.RUNNING,
                attempts=jobs.c.attempts + 1,
                lease_owner=owner,
                **leases.until(connection, lease_s),
            )
            .returning(jobs.c.id)
        )
        ids = list(claimed.scalars())
        rows = connection.execute(
            select(jobs.c.id, jobs.c.attempts, jobs.c.instance_id, jobs.c.created_at, instances)
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
                created_at=row[jobs.c.created_at],
                is_unconfirmed=bool(row["unconfirmed"]),
            )
            for row in rows
        ]
    faults.point("jobs-claimed")
    return taken


def renew(engine: Engine, owner: str, claimed: Sequence[Job], lease_s: float) -> None:
    """Keep claimed jobs for another `lease_s` seconds."""
    with write(engine) as connection:
        connection.execute(
            update(jobs)
            .where(jobs.c.id.in_([job.id for job in claimed]), _mine(owner))
            .values(**leases.until(connection, lease_s))
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
    content_digest: str = "",
    blobs: Blobs,
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
        content_digest: of the image, however it is encoded; empty if it isn't known.
        blobs: where results are; those `made` that no row came to own are removed from it after the commit.
    """
    answer = answer_of(findings)["answer"][:32]
    values = {"findings": json.dumps(findings), "model_version": model_version, "answer": answer}
    ended = _end_with(engine, owner, job, JobState.DONE, values, made, destinations, content_digest, blobs)
    faults.point("job-finished", job.sop_instance_uid)
    return ended


def reject(
    engine: Engine,
    owner: str,
    job: Job,
    reasons: Sequence[str],
    *,
    made: Sequence[Result] = (),
    destinations: dict[str, tuple[ResultKind, ...]] | None = None,
    content_digest: str = "",
    blobs: Blobs,
) -> bool:
    """End a job by the input's fault, with the notices that were made of it, if any; False if the lease was lost."""
    values = {"reasons": json.dumps(list(reasons)), "findings": "{}", "answer": ""}
    return _end_with(engine, owner, job, JobState.REJECTED, values, made, destinations or {}, content_digest, blobs)


def begin_analysis(engine: Engine, owner: str, job: Job, key: str) -> float | None:
    """The date of the analysis that `key` tells (image, model, program, settings) for a job, in UTC seconds.

    Written down once, so that whatever is made again of the same analysis bears the same date. A job's first analysis has the
    date at which its image came, which even a restored database knows. None: the lease was lost.
    """
    columns = (jobs.c.analysis_key, jobs.c.analysed_at, jobs.c.created_at)
    with write(engine) as connection:
        row = connection.execute(select(*columns).where(jobs.c.id == job.id, _mine(owner))).first()
        if row is None:
            return None
        if row.analysis_key == key and row.analysed_at is not None:
            return float(row.analysed_at)
        date = time.time() if row.analysis_key else float(row.created_at)
        connection.execute(update(jobs).where(jobs.c.id == job.id).values(analysis_key=key, analysed_at=date))
    return date


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


def _due(now: float, lapsed: Any) -> Any:
    return or_(
        and_(
            jobs.c.state == JobState.NEW,
            # a wait longer than any: the clock was ahead when it was written, and has been set back since
            or_(jobs.c.not_before <= now, jobs.c.not_before > now + _LONGEST_WAIT_S),
        ),
        and_(jobs.c.state == JobState.RUNNING, lapsed),
    )


def _choose(connection: Connection, lapsed: Any, now: float, limit: int, spool: str | None, *, only_new: bool) -> list[int]:
    """The IDs of jobs to claim, locked where the database has locks of rows."""
    never = now + _LONGEST_WAIT_S
    on_postgresql = connection.dialect.name == "postgresql"

    def new() -> list[int]:
        # some more than are wanted: another worker may have the first ones locked
        return fair_share.never_tried(connection, now, never, 4 * limit if on_postgresql else limit, spool)

    def tried_before(created: float) -> Callable[[], list[int]]:
        return lambda: fair_share.tried(connection, now, never, lapsed, created, spool)

    first = [tried_before(now - _LONG_S)] if random.random() < _OLD_AMONG_NEW else []
    if only_new and first and first[0]():
        return []  # the worker asks again when it has nothing else
    for find in [new] if only_new else [*first, new, tried_before(float("inf"))]:
        ids = find()
        if ids and on_postgresql:
            free = select(jobs.c.id).where(jobs.c.id.in_(ids), _due(now, lapsed)).with_for_update(skip_locked=True)
            locked = set(connection.execute(free).scalars())
            ids = [job_id for job_id in ids if job_id in locked]
        if ids:
            return ids[:limit]
    return []


def _mine(owner: str) -> Any:
    return and_(jobs.c.state == JobState.RUNNING, jobs.c.lease_owner == owner)


def _hold_exhausted(connection: Connection, now: float, lapsed: Any, max_attempts: int) -> None:
    reason = (
        f"The worker died {max_attempts} times on this image: it crashed, ran longer than inference.job_timeout_s, or used "
        "more memory than there is; the worker's log says which. Inspect the image, then `cxr-node queue retry`."
    )
    held = connection.execute(
        update(jobs)
        .where(jobs.c.state == JobState.RUNNING, lapsed, jobs.c.attempts >= max_attempts)
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


def _end_with(
    engine: Engine,
    owner: str,
    job: Job,
    state: JobState,
    values: dict[str, Any],
    made: Sequence[Result],
    destinations: dict[str, tuple[ResultKind, ...]],
    content_digest: str,
    blobs: Blobs,
) -> bool:
    discarded: list[str] = [result.path for result in made]
    with write(engine) as connection:
        again = resend.is_marked(connection, job.id)
        ended = _end(connection, owner, job, state, **values)
        if ended:
            discarded = _add_results(connection, job, made, destinations, blobs, again=again)
            if content_digest:
                connection.execute(
                    update(instances).where(instances.c.id == job.instance_id).values(content_digest=content_digest)
                )
            audit.add(connection, _ending(job, state, values))
    faults.point("job-ended", job.sop_instance_uid)
    discard(blobs, discarded)
    return ended


def _ending(job: Job, state: JobState, values: dict[str, Any]) -> AuditEvent:
    if state == JobState.REJECTED:
        return _event("job-rejected", job, "rejected", "; ".join(json.loads(values["reasons"])))
    return _event("job-done", job, detail=answer_in_words(json.loads(values["findings"])))


def _add_results(
    connection: Connection,
    job: Job,
    made: Sequence[Result],
    destinations: dict[str, tuple[ResultKind, ...]],
    blobs: Blobs,
    *,
    again: bool = False,
) -> list[str]:
    """A row for each result, and one for its delivery to each destination that takes its kind.

    Results that the job made before and doesn't make now go nowhere any more. Gives the keys of blobs that no row owns.
    `again`: a person wants them sent again, whatever became of their deliveries.
    """
    now = time.time()
    discarded: list[str] = []
    ids = []
    for result in made:
        result_id, unowned = _upsert_result(connection, job, result, now, blobs)
        ids.append(result_id)
        discarded += unowned
        for name in result.only_to or [name for name, kinds in destinations.items() if result.kind in kinds]:
            _add_delivery(connection, result_id, name, now, again=again)
    earlier = select(results.c.id).where(results.c.job_id == job.id, results.c.id.not_in(ids))
    connection.execute(
        update(deliveries)
        .where(
            deliveries.c.result_id.in_(earlier),
            deliveries.c.state.in_((DeliveryState.WAITING, DeliveryState.HELD)),
        )
        .values(state=DeliveryState.CANCELLED, reason=_MADE_ANEW)
    )
    return discarded


def _upsert_result(connection: Connection, job: Job, result: Result, now: float, blobs: Blobs) -> tuple[int, list[str]]:
    """The result's row, and the keys of blobs that no row owns.

    A job done again makes the same objects again: a blob that is there stays its row's, and the new one goes.
    """
    known = connection.execute(
        select(results.c.id, results.c.path, results.c.size_bytes, results.c.removed_at)
        .where(results.c.sop_instance_uid == result.sop_instance_uid)
        .with_for_update()
    ).first()
    values = {"path": result.path, "size_bytes": result.size_bytes, "created_at": now, "removed_at": None}
    if known is not None:
        if known.removed_at is None and blobs.size(known.path) == known.size_bytes:
            return int(known.id), [result.path]
        connection.execute(update(results).where(results.c.id == known.id).values(**values))
        return int(known.id), [known.path]
    added = insert(results).values(
        job_id=job.id,
        kind=result.kind,
        sop_instance_uid=result.sop_instance_uid,
        sop_class_uid=result.sop_class_uid,
        transfer_syntax_uid=result.transfer_syntax_uid,
        **values,
    )
    return int(connection.execute(added.returning(results.c.id)).scalar_one()), []


def _add_delivery(connection: Connection, result_id: int, destination: str, now: float, *, again: bool) -> None:
    this = and_(deliveries.c.result_id == result_id, deliveries.c.destination == destination)
    if connection.execute(select(func.count()).where(this)).scalar():
        # its file may have been gone; now it is there again
        due = deliveries.c.state != DeliveryState.SENDING if again else deliveries.c.state == DeliveryState.HELD
        connection.execute(
            update(deliveries)
            .where(this, due)
            .values(state=DeliveryState.WAITING, attempts=0, asks=0, not_before=0, transaction_uid="")
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
