"""How a received instance enters: its row, its job and its audit event, all or none."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, Engine, and_, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from cxr_node import faults
from cxr_node.records import AuditEvent, JobState, Sender, StoredInstance
from cxr_node.store import audit
from cxr_node.store.database import write
from cxr_node.store.schema import instances, jobs

_MOST_ATTEMPTS = 10


# made once: made anew for each instance, they are a third of its admission
_KNOWN = select(instances.c.sha256, instances.c.removed_at).where(instances.c.sop_instance_uid == bindparam("sop_instance_uid"))
_NEW_INSTANCE = insert(instances).returning(instances.c.id)
_NEW_JOB = insert(jobs)


class Admission(StrEnum):
    """What became of a received instance."""

    QUEUED = "queued"
    KEPT = "kept"  # stored, not to be analysed
    DUPLICATE = "duplicate"  # same UID, same content: already here
    REVISION = "revision"  # same UID, other content: queued as a new revision


@dataclass(frozen=True)
class Arrival:
    """An instance to be entered; see `admit`."""

    stored: StoredInstance
    sender: Sender
    analyse: bool
    note: str = ""


def known_digests(engine: Engine, sop_instance_uid: str) -> set[str]:
    """SHA-256 of every content stored under a SOP instance UID."""
    with engine.connect() as connection:
        rows = connection.execute(select(instances.c.sha256).where(instances.c.sop_instance_uid == sop_instance_uid))
        return set(rows.scalars())


def admit(engine: Engine, stored: StoredInstance, sender: Sender, *, analyse: bool, note: str = "") -> Admission:
    """Enter an instance whose file is safe on disk: its row, its job and its audit event, all or none.

    Args:
        engine: the database.
        stored: the instance.
        sender: who sent it.
        analyse: False keeps it out of the queue; `note` says why.
        note: a sentence for the audit log.
    """
    return admit_all(engine, [Arrival(stored, sender, analyse, note)])[0]


def admit_all(engine: Engine, arrivals: Sequence[Arrival]) -> list[Admission]:
    """Enter several instances as `admit` does, with one flush of the disk for all of them: all or none."""
    for attempt in itertools.count(1):
        try:
            with write(engine) as connection:
                admitted = [_admit(connection, one.stored, one.sender, one.analyse, one.note) for one in arrivals]
            for one in arrivals:
                faults.point("instance-admitted", one.stored.header.sop_instance_uid)
            return admitted
        except IntegrityError:  # the same revision came in over another association of another process: look again
            if attempt == _MOST_ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def _admit(connection: Connection, stored: StoredInstance, sender: Sender, analyse: bool, note: str) -> Admission:
    header = stored.header
    now = time.time()
    known = connection.execute(_KNOWN, {"sop_instance_uid": header.sop_instance_uid}).all()
    if any(row.sha256 == stored.sha256 for row in known):
        admission = Admission.DUPLICATE
        this = and_(instances.c.sop_instance_uid == header.sop_instance_uid, instances.c.sha256 == stored.sha256)
        if any(row.sha256 == stored.sha256 and row.removed_at is not None for row in known):
            # its file was gone, and with it what a job could do; now it is back
            connection.execute(
                update(jobs)
                .where(jobs.c.state == JobState.HELD, jobs.c.instance_id.in_(select(instances.c.id).where(this)))
                .values(state=JobState.NEW, attempts=0, not_before=0, reasons="[]", finished_at=None)
            )
        connection.execute(update(instances).where(this).values(removed_at=None, path=stored.path, received_at=now))
    else:
        instance_id = connection.execute(
            _NEW_INSTANCE,
            {
                "sop_instance_uid": header.sop_instance_uid,
                "revision": len(known),
                "sha256": stored.sha256,
                "size_bytes": stored.size_bytes,
                "path": stored.path,
                "sop_class_uid": header.sop_class_uid,
                "transfer_syntax_uid": header.transfer_syntax_uid,
                "study_instance_uid": header.study_instance_uid,
                "series_instance_uid": header.series_instance_uid,
                "patient_id": header.patient_id[:64],
                "accession_number": header.accession_number[:64],
                "calling_ae_title": sender.calling_ae_title,
                "called_ae_title": sender.called_ae_title,
                "host": sender.host,
                "received_at": now,
                "note": note,
            },
        ).scalar_one()
        if analyse:
            connection.execute(
                _NEW_JOB,
                {
                    "instance_id": instance_id,
                    "state": JobState.NEW,
                    "priority": 0,
                    "attempts": 0,
                    "not_before": 0,
                    "lease_owner": "",
                    "lease_until": 0,
                    "reasons": "[]",
                    "findings": "{}",
                    "model_version": "",
                    "created_at": now,
                },
            )
            admission = Admission.REVISION if known else Admission.QUEUED
        else:
            admission = Admission.KEPT
    audit.add(
        connection,
        AuditEvent(
            event="instance-received",
            user=sender.calling_ae_title,
            host=sender.host,
            patient_id=header.patient_id[:64],
            study_instance_uid=header.study_instance_uid,
            sop_instance_uid=header.sop_instance_uid,
            detail=f"{admission}: {note}" if note else str(admission),
        ),
    )
    return admission
