"""Images under a known SOP instance UID from a sender that may not correct it: stored separately, compared, held for an operator.

The row of such an image is `unconfirmed`. It ends no earlier work, no result references it, and nothing is merged with it. The
worker only checks whether it is the same image in another encoding, as a PACS forwards it; if not, its job is held.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import Connection, Engine, and_, func, select, update

from cxr_node.records import AuditEvent, Job, JobState
from cxr_node.store.audit_log import audit
from cxr_node.store.database import write
from cxr_node.store.files.blobs import Blobs
from cxr_node.store.queue.corrections import supersede
from cxr_node.store.schema import instances, jobs

if TYPE_CHECKING:
    from sqlalchemy import Row

log = structlog.get_logger()

NOT_ITS_SENDER = (
    "Another image came under the SOP instance UID of one that is here, from a sender that may not correct it: nothing was "
    "replaced. If it is a correction, `cxr-node queue accept NUMBER` analyses it in the earlier one's place; if not, `cxr-node "
    "queue cancel NUMBER`. A sender whose corrections are to be taken gets `may_correct = true` in [[senders]]."
)
"""The same for all, so that `status` counts them in one line."""
_EVENT = "revision-held"
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
"""Implicit and Explicit VR Little Endian: pixels are the same bytes in both."""
_CHUNK_BYTES = 1024 * 1024


def hold(engine: Engine, owner: str, job: Job) -> bool:
    """Leave another image of one who may not correct to a person; False if the lease was lost."""
    mine = and_(jobs.c.id == job.id, jobs.c.state == JobState.RUNNING, jobs.c.lease_owner == owner)
    with write(engine) as connection:
        held = connection.execute(
            update(jobs)
            .where(mine)
            .values(
                state=JobState.HELD,
                reasons=json.dumps([NOT_ITS_SENDER]),
                lease_owner="",
                lease_until=0,
                finished_at=time.time(),
            )
        ).rowcount
        if not held:
            return False
        row = _instance(connection, job.instance_id)
        first = connection.execute(
            select(instances.c.calling_ae_title, instances.c.host)
            .where(instances.c.sop_instance_uid == row.sop_instance_uid, instances.c.unconfirmed == 0)
            .order_by(instances.c.revision)
            .limit(1)
        ).first()
        whose = f"that {first.calling_ae_title} at {first.host} sent" if first else "of another sender"
        detail = f"another image under the SOP instance UID of one {whose}; it replaces nothing; job {job.id} is held"
        audit.add(connection, _event(row, _EVENT, "failure", row.calling_ae_title, row.host, detail))
    log.warning(
        "another image under a known SOP instance UID, from a sender that may not correct it",
        sop_instance_uid=row.sop_instance_uid,
        calling_ae_title=row.calling_ae_title,
        host=row.host,
        job=job.id,
    )
    return True


def confirm(connection: Connection, instance_id: int, user: str = "") -> None:
    """Take an unconfirmed image as a correction: the newest revision, analysed in the place of what came before.

    Args:
        connection: from `write`.
        instance_id: the image.
        user: the operator; empty: the rightful sender has sent it too.
    """
    row = _instance(connection, instance_id)
    same_uid = instances.c.sop_instance_uid == row.sop_instance_uid
    newest = connection.execute(select(func.max(instances.c.revision)).where(same_uid)).scalar() or 0
    revision = row.revision if newest == row.revision else newest + 1
    connection.execute(update(instances).where(instances.c.id == instance_id).values(unconfirmed=0, revision=revision))
    connection.execute(
        update(jobs)
        .where(jobs.c.instance_id == instance_id)
        .values(
            state=JobState.NEW,
            attempts=0,
            not_before=0,
            reasons="[]",
            finished_at=None,
            superseded_by=None,
            lease_owner="",
            lease_until=0,
        )
    )
    earlier = connection.execute(
        select(instances.c.id).where(
            same_uid,
            instances.c.id != instance_id,
            instances.c.unconfirmed == 0,
            instances.c.study_instance_uid == row.study_instance_uid,
        )
    )
    if ids := list(earlier.scalars()):
        supersede(connection, ids, instance_id)
    if user:
        detail = f"an image from {row.calling_ae_title} at {row.host} taken as a correction"
        audit.add(connection, _event(row, "revision-accepted", "success", user, "", detail))


def _instance(connection: Connection, instance_id: int) -> Row[tuple[object, ...]]:
    return connection.execute(select(instances).where(instances.c.id == instance_id).with_for_update()).one()


def _event(row: Row[tuple[object, ...]], event: str, outcome: str, user: str, host: str, detail: str) -> AuditEvent:
    return AuditEvent(
        event,
        outcome,
        user=user,
        host=host,
        patient_id=row.patient_id,
        study_instance_uid=row.study_instance_uid,
        sop_instance_uid=row.sop_instance_uid,
        detail=detail,
    )


def is_another_picture(engine: Engine, blobs: Blobs, sop_instance_uid: str, digest: str) -> bool:
    """Whether an unconfirmed image is plainly not the one that is confirmed under its UID.

    Nothing is decoded: where two data sets are encoded in ways that write the same pixels as the same bytes, their ends are
    compared. In doubt it may be the same image, as a PACS passes it on, and the worker finds out.

    Args:
        engine: the database.
        blobs: where they are.
        sop_instance_uid: of the image.
        digest: of its data set.
    """
    query = select(instances.c.path, instances.c.digest, instances.c.transfer_syntax_uid, instances.c.unconfirmed).where(
        instances.c.sop_instance_uid == sop_instance_uid, instances.c.removed_at.is_(None)
    )
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    here = next((row for row in rows if row.unconfirmed and row.digest == digest), None)
    others = [row for row in rows if not row.unconfirmed]
    if here is None or not others:
        return False
    for other in others:
        is_comparable = other.transfer_syntax_uid == here.transfer_syntax_uid or {
            other.transfer_syntax_uid,
            here.transfer_syntax_uid,
        } <= set(_NATIVE)
        if not is_comparable or _are_alike(blobs, here.path, other.path):
            return False
    return True


def _are_alike(blobs: Blobs, here: str, other: str) -> bool:
    try:
        with blobs.fetch(here) as one, blobs.fetch(other) as another:
            return _end_alike(one, another)
    except OSError:  # it has gone since, with what retention removes, or can't be had now
        return True


def _end_alike(one: Path, other: Path) -> bool:
    """Whether the last halves of two files hold the same bytes; True where they can't be read."""
    try:
        with one.open("rb") as first, other.open("rb") as second:
            length = min(os.fstat(first.fileno()).st_size, os.fstat(second.fileno()).st_size) // 2
            first.seek(-length, os.SEEK_END)
            second.seek(-length, os.SEEK_END)
            while chunk := first.read(_CHUNK_BYTES):
                if chunk != second.read(_CHUNK_BYTES):
                    return False
    except OSError:  # it has gone since, with what retention removes
        return True
    return True
