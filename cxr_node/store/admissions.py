"""How a received instance enters: its row, its job and its audit event, all or none."""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sqlalchemy import Connection, Engine, and_, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from cxr_node import faults
from cxr_node.records import AuditEvent, DataFolder, JobState, Sender, StoredInstance
from cxr_node.store import audit
from cxr_node.store.database import write
from cxr_node.store.digests import earlier_digest_of, is_earlier
from cxr_node.store.instances import remove
from cxr_node.store.prepared import Prepared
from cxr_node.store.schema import instances, jobs

_MOST_ATTEMPTS = 10


_KNOWN = select(instances.c.digest, instances.c.removed_at, instances.c.path).where(
    instances.c.sop_instance_uid == bindparam("sop_instance_uid")
)
_KNOWN_HERE = Prepared(_KNOWN)
_NEW_INSTANCE = Prepared(insert(instances).returning(instances.c.id))
_NEW_JOB = Prepared(insert(jobs).inline())


class Admission(StrEnum):
    """What became of a received instance."""

    QUEUED = "queued"
    KEPT = "kept"  # stored, not to be analysed
    DUPLICATE = "duplicate"  # same UID, same content: already here
    REVISION = "revision"  # same UID, other content: queued as a new revision


@dataclass(frozen=True)
class Arrival:
    """An instance to be entered; see `admit`."""

    folders: DataFolder
    stored: StoredInstance
    sender: Sender
    analyse: bool
    note: str = ""


def is_changed(engine: Engine, sop_instance_uid: str, digest: str, file: Path) -> bool:
    """Whether only other contents than this, of a file, are stored under a SOP instance UID."""
    with engine.connect() as connection:
        known = connection.execute(_KNOWN, {"sop_instance_uid": sop_instance_uid}).scalars().all()
    return bool(known) and _same(known, digest, file) is None


def admit(
    engine: Engine, folders: DataFolder, stored: StoredInstance, sender: Sender, *, analyse: bool, note: str = ""
) -> Admission:
    """Enter an instance whose file is safe on disk: its row, its job and its audit event, all or none.

    Args:
        engine: the database.
        folders: the data folder.
        stored: the instance.
        sender: who sent it.
        analyse: False keeps it out of the queue; `note` says why.
        note: a sentence for the audit log.
    """
    return admit_all(engine, [Arrival(folders, stored, sender, analyse, note)])[0]


def admit_all(engine: Engine, arrivals: Sequence[Arrival]) -> list[Admission]:
    """Enter several instances as `admit` does, with one flush of the disk for all of them: all or none."""
    for attempt in itertools.count(1):
        try:
            with write(engine) as connection:
                replaced: list[str] = []
                admitted = [_admit(connection, one, replaced) for one in arrivals]
            for one in arrivals:
                faults.point("instance-admitted", one.stored.header.sop_instance_uid)
            for path in replaced:
                remove(arrivals[0].folders, path)
            return admitted
        except IntegrityError:  # the same revision came in over another association of another process: look again
            if attempt == _MOST_ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def _same(known: Collection[str], digest: str, file: Path) -> str | None:
    """Which of these digests is that of a content, as it is or as earlier releases told it; None: none is."""
    if digest in known:
        return digest
    if any(map(is_earlier, known)) and (earlier := earlier_digest_of(file)) in known:
        return earlier
    return None


def _admit(connection: Connection, one: Arrival, replaced: list[str]) -> Admission:
    """Enter an instance; `replaced` is told the paths of files whose rows now have another."""
    stored, sender, header, note = one.stored, one.sender, one.stored.header, one.note
    now = time.time()
    known = _KNOWN_HERE.execute(connection, {"sop_instance_uid": header.sop_instance_uid})
    if (same := _same([row[0] for row in known], stored.digest, one.folders.root / stored.path)) is not None:
        admission = Admission.DUPLICATE
        this = and_(instances.c.sop_instance_uid == header.sop_instance_uid, instances.c.digest == same)
        if any(known_digest == same and removed_at is not None for known_digest, removed_at, _ in known):
            # its file was gone, and with it what a job could do; now it is back
            connection.execute(
                update(jobs)
                .where(jobs.c.state == JobState.HELD, jobs.c.instance_id.in_(select(instances.c.id).where(this)))
                .values(state=JobState.NEW, attempts=0, not_before=0, reasons="[]", finished_at=None)
            )
        replaced += [path for known_digest, _, path in known if known_digest == same and path != stored.path]
        connection.execute(
            update(instances).where(this).values(removed_at=None, path=stored.path, received_at=now, digest=stored.digest)
        )
    else:
        ((instance_id,),) = _NEW_INSTANCE.execute(
            connection,
            {
                "sop_instance_uid": header.sop_instance_uid,
                "revision": len(known),
                "digest": stored.digest,
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
        )
        if one.analyse:
            _NEW_JOB.execute(
                connection,
                {
                    "instance_id": instance_id,
                    "state": str(JobState.NEW),
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
