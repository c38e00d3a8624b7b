"""The effect of a corrected image: open jobs and waiting deliveries of earlier revisions end.

An image that turns out to be an earlier one in another encoding is no correction: the work that its arrival ended continues, and
the two are merged.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, and_, delete, exists, or_, select, update

from cxr_node.dicom.references import Reference
from cxr_node.records import AuditEvent, DeliveryState, Job, JobState, ResultKind, quantity
from cxr_node.store import faults
from cxr_node.store.audit_log import audit
from cxr_node.store.database import write
from cxr_node.store.files.blobs import Blobs, discard, is_there
from cxr_node.store.files.consistency import continues_with_its_file
from cxr_node.store.queue.resend import BEING_MADE
from cxr_node.store.schema import deliveries, instances, jobs, patient_names, results

_SAME_IMAGE = "Its file is gone, and its image is the same as an earlier one, whose results stand."
_SUPERSEDED = "A corrected image came under the same SOP instance UID; it is analysed instead."
_OPEN_JOBS = (JobState.NEW, JobState.RUNNING, JobState.HELD)
_OPEN_DELIVERIES = (DeliveryState.WAITING, DeliveryState.HELD)


def supersede(connection: Connection, instance_ids: Sequence[int], by: int) -> None:
    """End what is still open of earlier revisions, in the transaction that admits the corrected one.

    A delivery under way can't be called back; it is not tried again (see `cancel_superseded`).

    Args:
        connection: from `write`.
        instance_ids: the earlier revisions.
        by: the corrected instance.
    """
    now = time.time()
    cancelled = connection.execute(
        update(jobs)
        .where(jobs.c.instance_id.in_(instance_ids), jobs.c.state.in_(_OPEN_JOBS))
        .values(
            state=JobState.CANCELLED,
            reasons=json.dumps([_SUPERSEDED]),
            superseded_by=by,
            lease_owner="",
            lease_until=0,
            finished_at=now,
        )
    ).rowcount
    of_these = select(results.c.id).join(jobs, results.c.job_id == jobs.c.id).where(jobs.c.instance_id.in_(instance_ids))
    ended = connection.execute(
        update(deliveries)
        .where(deliveries.c.result_id.in_(of_these), deliveries.c.state.in_(_OPEN_DELIVERIES))
        .values(state=DeliveryState.CANCELLED, reason=_SUPERSEDED, superseded_by=by, lease_owner="", lease_until=0)
    ).rowcount
    under_way = (DeliveryState.SENDING, DeliveryState.COMMITTING)  # after a report that it isn't kept, one would be sent again
    connection.execute(
        update(deliveries).where(deliveries.c.result_id.in_(of_these), deliveries.c.state.in_(under_way)).values(superseded_by=by)
    )
    if cancelled or ended:
        detail = f"{quantity(cancelled, 'job')} and {quantity(ended, 'delivery', 'deliveries')} of earlier revisions cancelled"
        audit.add(connection, _event(connection, "instance-superseded", by, detail))


def cancel_superseded(connection: Connection, destination: str, lapsed: Any) -> None:
    """End deliveries that were under way when a correction came, and then failed, were not kept, or lost their sender.

    `lapsed`: the condition that the lease of a delivery has lapsed.
    """
    connection.execute(
        update(deliveries)
        .where(
            deliveries.c.destination == destination,
            deliveries.c.superseded_by.is_not(None),
            or_(deliveries.c.state.in_(_OPEN_DELIVERIES), and_(deliveries.c.state == DeliveryState.SENDING, lapsed)),
        )
        .values(state=DeliveryState.CANCELLED, reason=_SUPERSEDED, lease_owner="", lease_until=0)
    )


def revive(connection: Connection, by: int) -> None:
    """Let go on what the arrival of an instance ended: it corrects nothing."""
    uid = select(instances.c.sop_instance_uid).where(instances.c.id == by).scalar_subquery()
    of_these = select(instances.c.id).where(instances.c.sop_instance_uid == uid)
    connection.execute(
        update(jobs)
        .where(jobs.c.instance_id.in_(of_these), jobs.c.superseded_by == by)
        .values(state=JobState.NEW, reasons="[]", superseded_by=None, attempts=0, not_before=0, finished_at=None)
    )
    made = select(results.c.id).join(jobs, results.c.job_id == jobs.c.id).where(jobs.c.instance_id.in_(of_these))
    mine = and_(deliveries.c.result_id.in_(made), deliveries.c.superseded_by == by)
    connection.execute(
        update(deliveries)
        .where(mine, deliveries.c.state == DeliveryState.CANCELLED)
        .values(state=DeliveryState.WAITING, reason="", attempts=0, not_before=0)
    )
    is_gone = deliveries.c.result_id.in_(select(results.c.id).where(results.c.removed_at.is_not(None)))
    revived = and_(mine, deliveries.c.state == DeliveryState.WAITING)
    to_make = select(results.c.job_id).join(deliveries, deliveries.c.result_id == results.c.id).where(revived, is_gone)
    connection.execute(
        update(jobs)
        .where(jobs.c.id.in_(to_make), jobs.c.state == JobState.DONE)
        .values(state=JobState.NEW, attempts=0, not_before=0, reasons="[]", finished_at=None)
    )
    connection.execute(update(deliveries).where(revived, is_gone).values(state=DeliveryState.HELD, reason=BEING_MADE))
    connection.execute(update(deliveries).where(mine).values(superseded_by=None))


def same_image(engine: Engine, job: Job, content_digest: str, digest_of: Callable[[str], str]) -> int | None:
    """The earliest revision before this job's image that is the same image, however encoded; None: it is a new one.

    Args:
        engine: the database.
        job: whose image has an earlier one under its SOP instance UID.
        content_digest: of its image.
        digest_of: the content digest of the blob under a key; empty if it can't be read. Asked where no row tells.
    """
    query = (
        select(instances.c.id, instances.c.content_digest, instances.c.path, instances.c.removed_at)
        .where(instances.c.sop_instance_uid == job.sop_instance_uid, instances.c.revision < job.revision)
        .where(instances.c.unconfirmed <= int(job.is_unconfirmed))  # nothing becomes one with what nobody has confirmed
        .order_by(instances.c.revision)
    )
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    for row in rows:
        known = row.content_digest
        if not known and row.removed_at is None and (known := digest_of(row.path)):
            note_content(engine, row.id, known)
        if known == content_digest:
            return int(row.id)
    return None


def note_content(engine: Engine, instance_id: int, content_digest: str) -> None:
    """Write down what an instance's content is told by."""
    with write(engine) as connection:
        connection.execute(update(instances).where(instances.c.id == instance_id).values(content_digest=content_digest))


def merge(engine: Engine, owner: str, job: Job, into: int, blobs: Blobs) -> bool:
    """Make an instance one with an earlier revision that is the same image, and end its job; False if the lease was lost.

    One row, one job and one set of results stay; the blob of the earlier one, or of this one where the earlier is gone.

    Args:
        engine: the database.
        owner: the worker that has the job.
        job: the job of the later arrival.
        into: the earlier instance.
        blobs: where instances are; the one that no row owns any more is removed from it after the commit.
    """
    with write(engine) as connection:
        mine = and_(jobs.c.id == job.id, jobs.c.state == JobState.RUNNING, jobs.c.lease_owner == owner)
        if connection.execute(select(jobs.c.id).where(mine).with_for_update()).first() is None:
            return False
        rows = connection.execute(
            select(instances).where(instances.c.id.in_((job.instance_id, into))).order_by(instances.c.id).with_for_update()
        ).all()
        by_id = {row.id: row for row in rows}
        late, early = by_id[job.instance_id], by_id[into]
        revive(connection, job.instance_id)
        has_results = connection.execute(select(exists().where(results.c.job_id == job.id))).scalar()
        if has_results:  # it was analysed before, by a program that couldn't know: both stay
            connection.execute(update(jobs).where(jobs.c.id == job.id).values(**_ended()))
            _cancel_lost(connection, job.id)
            return True
        connection.execute(delete(jobs).where(jobs.c.id == job.id))
        connection.execute(delete(patient_names).where(patient_names.c.instance_id == job.instance_id))
        connection.execute(delete(instances).where(instances.c.id == job.instance_id))
        values: dict[str, Any] = {
            "received_at": max(late.received_at, early.received_at),
            "keep_until": max(filter(None, (late.keep_until, early.keep_until)), default=None),
        }
        if early.removed_at is not None or not is_there(blobs, early.path, early.size_bytes, early.spool):
            discarded = early.path
            for column in ("path", "size_bytes", "digest", "transfer_syntax_uid", "spool"):
                values[column] = getattr(late, column)
            values["removed_at"] = None
            connection.execute(
                update(jobs)
                .where(jobs.c.instance_id == into, continues_with_its_file())
                .values(state=JobState.NEW, attempts=0, not_before=0, reasons="[]", finished_at=None)
            )
        else:
            discarded = late.path
        connection.execute(update(instances).where(instances.c.id == into).values(**values))
        audit.add(connection, _event(connection, "instance-same", into, "arrived again in another encoding"))
    faults.point("instance-merged", job.sop_instance_uid)
    discard(blobs, [discarded])
    return True


def _cancel_lost(connection: Connection, job_id: int) -> None:
    """End the deliveries of a job's results whose files are gone: they are not made again."""
    lost = select(results.c.id).where(results.c.job_id == job_id, results.c.removed_at.is_not(None))
    connection.execute(
        update(deliveries)
        .where(deliveries.c.result_id.in_(lost), deliveries.c.state.in_(_OPEN_DELIVERIES))
        .values(state=DeliveryState.CANCELLED, reason=_SAME_IMAGE, lease_owner="", lease_until=0)
    )


@dataclass(frozen=True)
class SentResult:
    """A result that a destination has, of an image before it was corrected. `sent_as`: class and UID, if not its own."""

    destination: str
    key: str
    sop_instance_uid: str
    sent_as: Reference | None


def sent_before(engine: Engine, job: Job, destinations: Collection[str]) -> list[SentResult]:
    """What these destinations have, or may have, of earlier revisions of a job's image in the same study."""
    arrived = or_(
        deliveries.c.state.in_((DeliveryState.SENT, DeliveryState.COMMITTING, DeliveryState.SENDING)),
        deliveries.c.sent_at.is_not(None),
        deliveries.c.unanswered != 0,
    )
    query = (
        select(deliveries, results.c.path, results.c.sop_instance_uid)
        .join(results, deliveries.c.result_id == results.c.id)
        .join(jobs, results.c.job_id == jobs.c.id)
        .join(instances, jobs.c.instance_id == instances.c.id)
        .where(
            instances.c.sop_instance_uid == job.sop_instance_uid,
            instances.c.revision < job.revision,
            instances.c.study_instance_uid == job.study_instance_uid,
            results.c.kind != ResultKind.WITHDRAWAL,
            results.c.removed_at.is_(None),
            deliveries.c.destination.in_(destinations),
            arrived,
        )
        .order_by(results.c.id)
    )
    with engine.connect() as connection:
        return [
            SentResult(
                row.destination,
                row.path,
                row.sop_instance_uid,
                (row.sent_sop_class_uid, row.sent_sop_instance_uid) if row.sent_sop_instance_uid else None,
            )
            for row in connection.execute(query)
        ]


def refuse(engine: Engine, job: Job) -> None:
    """Let go on what a changed image ended that the settings don't want: it corrects nothing."""
    with write(engine) as connection:
        revive(connection, job.instance_id)


def _ended() -> dict[str, Any]:
    return {"state": JobState.DONE, "lease_owner": "", "lease_until": 0, "finished_at": time.time()}


def _event(connection: Connection, event: str, instance_id: int, detail: str) -> AuditEvent:
    whose = (instances.c.patient_id, instances.c.study_instance_uid, instances.c.sop_instance_uid)
    who = (instances.c.calling_ae_title.label("user"), instances.c.host)
    row = connection.execute(select(*who, *whose).where(instances.c.id == instance_id)).one()
    return AuditEvent(event, detail=detail, **row._mapping)
