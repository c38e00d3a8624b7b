"""Admits a received instance: its row, its job and its audit event, all or none.

Over 300 lines: the cases of one decision, and what each of them writes.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import structlog
from sqlalchemy import Connection, Engine, bindparam, exists, insert, select, update
from sqlalchemy.exc import IntegrityError

from cxr_node.peer_address import plain_address, site_of
from cxr_node.records import AuditEvent, InstanceHeader, JobState, Sender, StoredInstance
from cxr_node.store import faults
from cxr_node.store.audit_log import audit
from cxr_node.store.database import write
from cxr_node.store.files.blobs import Blobs, discard, is_there
from cxr_node.store.files.consistency import continues_with_its_file
from cxr_node.store.files.digests import earlier_digest_of, is_earlier
from cxr_node.store.prepared import Prepared
from cxr_node.store.queue import confirmations
from cxr_node.store.queue.corrections import supersede
from cxr_node.store.schema import instances, jobs

log = structlog.get_logger()

_MOST_ATTEMPTS = 10

_KNOWN = (
    select(
        instances.c.id,
        instances.c.revision,
        instances.c.digest,
        instances.c.removed_at,
        instances.c.path,
        instances.c.size_bytes,
        instances.c.study_instance_uid,
        instances.c.patient_id,
        instances.c.calling_ae_title,
        instances.c.host,
        instances.c.certificate_sha256,
        instances.c.unconfirmed,
        instances.c.spool,
    )
    .where(instances.c.sop_instance_uid == bindparam("sop_instance_uid"))
    .order_by(instances.c.revision)
)
_KNOWN_HERE = Prepared(_KNOWN.with_for_update())  # so that PostgreSQL's retention waits, too
_ANOTHER = "its SOP instance UID arrived before with another {}: its sender may create UIDs that are not unique"
_KEPT_CHANGED = "changed content, kept and not analysed again"
_NEW_INSTANCE = Prepared(insert(instances).returning(instances.c.id))
_NEW_JOB = Prepared(insert(jobs).inline())


class Admission(StrEnum):
    """What became of a received instance."""

    QUEUED = "queued"
    HELD = "held"  # stored, and a person decides whether it is analysed
    KEPT = "kept"  # stored, not to be analysed
    DUPLICATE = "duplicate"  # same UID, same bytes: already here
    REVISION = "revision"  # same UID, other content: queued as a new revision
    UNCONFIRMED = "unconfirmed"  # the same of one who may not correct it: looked at by the worker, and left to a person


@dataclass(frozen=True)
class Arrival:
    """An instance to be entered; see `admit`.

    analyse_changed: False keeps what comes with other content under a known UID out of the queue.
    priority: of its job; higher ones are claimed first.
    on_duplicate: called within the transaction with the instance that it is a duplicate of.
    held_because: why its job is held from the beginning; empty: it isn't.
    peer: who its sender's address counts as, where each has its share of the queue; empty: its site.
    may_correct: False leaves what its sender sends under another sender's UID to a person (see `confirmations`).
    """

    blobs: Blobs
    stored: StoredInstance
    sender: Sender
    analyse: bool
    note: str = ""
    analyse_changed: bool = True
    priority: int = 0
    on_duplicate: Callable[[Connection, int], None] | None = None
    may_correct: bool = True
    held_because: str = ""
    peer: str = ""


@dataclass
class _After:
    """What is left to do once a transaction is committed: blobs to remove, UIDs to warn of."""

    discarded: list[str] = field(default_factory=list)
    reused: list[tuple[str, str]] = field(default_factory=list)


def is_changed(engine: Engine, sop_instance_uid: str, transfer_syntax_uid: str, digest: str, file: Path) -> bool:
    """Whether only other contents than this, of a file, are stored under a SOP instance UID, all in its encoding.

    What is stored in another encoding can't be compared without decoding it, which is for the worker to do.
    """
    query = select(instances.c.digest, instances.c.transfer_syntax_uid).where(instances.c.sop_instance_uid == sop_instance_uid)
    with engine.connect() as connection:
        known = connection.execute(query).all()
    if not known or any(row.transfer_syntax_uid != transfer_syntax_uid for row in known):
        return False
    return _same([row.digest for row in known], digest, lambda: earlier_digest_of(file)) is None


def admit(engine: Engine, blobs: Blobs, stored: StoredInstance, sender: Sender, *, analyse: bool, note: str = "") -> Admission:
    """Enter an instance whose blob is safe: its row, its job and its audit event, all or none.

    Args:
        engine: the database.
        blobs: where it is.
        stored: the instance.
        sender: who sent it.
        analyse: False keeps it out of the queue; `note` says why.
        note: a sentence for the audit log.
    """
    return admit_all(engine, [Arrival(blobs, stored, sender, analyse, note)])[0]


def admit_all(engine: Engine, arrivals: Sequence[Arrival]) -> list[Admission]:
    """Enter several instances as `admit` does, with one flush of the disk for all of them: all or none."""
    for attempt in itertools.count(1):
        try:
            with write(engine) as connection:
                after = _After()
                admitted = [_admit(connection, one, after) for one in arrivals]
            for one in arrivals:
                faults.point("instance-admitted", one.stored.header.sop_instance_uid)
            discard(arrivals[0].blobs, after.discarded)
            for uid, reason in after.reused:
                log.warning("SOP instance UID used again", sop_instance_uid=uid, reason=reason)
            return admitted
        except IntegrityError:  # the same revision came in over another association of another process: look again
            if attempt == _MOST_ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def _same(known: Collection[str], digest: str, earlier_digest: Callable[[], str]) -> str | None:
    """Which of these digests is that of a content, as it is or as earlier releases told it; None: none is."""
    if digest in known:
        return digest
    if any(map(is_earlier, known)) and (earlier := earlier_digest()) in known:
        return earlier
    return None


def _earlier_digest(one: Arrival) -> str:
    with one.blobs.fetch(one.stored.path) as path:
        return earlier_digest_of(path)


def _admit(connection: Connection, one: Arrival, after: _After) -> Admission:
    """Decide about one arrival and write its rows.

    Over 60 lines: the cases of one decision, in the order in which they are asked.
    """
    stored, sender, header, note = one.stored, one.sender, one.stored.header, one.note
    now = time.time()
    known = [_Known(*row) for row in _KNOWN_HERE.execute(connection, {"sop_instance_uid": header.sop_instance_uid})]
    same = _same([row.digest for row in known], stored.digest, lambda: _earlier_digest(one)) if known else None
    confirmed = [row for row in known if not row.unconfirmed]
    is_strange = bool(known) and not one.may_correct and not any(_is_sender_of(row, sender) for row in confirmed)
    if same is not None:
        admission = Admission.DUPLICATE
        the_same = next(row for row in known if row.digest == same)
        _take_duplicate(connection, one, the_same, now, after)
        if the_same.unconfirmed:
            admission = Admission.UNCONFIRMED
            if not is_strange:
                confirmations.confirm(connection, the_same.id)
                admission = Admission.REVISION
    else:
        analyse = one.analyse
        if known and analyse and not one.analyse_changed:
            analyse, note = False, _KEPT_CHANGED
        is_strange = is_strange and analyse
        ((instance_id,),) = _NEW_INSTANCE.execute(
            connection,
            {
                "sop_instance_uid": header.sop_instance_uid,
                "revision": known[-1].revision + 1 if known else 0,
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
                "certificate_sha256": sender.certificate_sha256,
                "unconfirmed": int(is_strange),
                "spool": stored.spool,
            },
        )
        if analyse:
            _NEW_JOB.execute(
                connection,
                {
                    "instance_id": instance_id,
                    "host": one.peer or site_of(sender.host),
                    "state": str(JobState.HELD if one.held_because else JobState.NEW),
                    "priority": one.priority,
                    "attempts": 0,
                    "not_before": 0,
                    "lease_owner": "",
                    "lease_until": 0,
                    "reasons": json.dumps([one.held_because] if one.held_because else []),
                    "findings": "{}",
                    "model_version": "",
                    "created_at": stored.kept_at,
                },
            )
            admission = Admission.REVISION if known else Admission.HELD if one.held_because else Admission.QUEUED
            corrected = [row.id for row in confirmed if row.study_instance_uid == header.study_instance_uid]
            if is_strange:
                admission = Admission.UNCONFIRMED
            elif corrected:
                supersede(connection, corrected, instance_id)
        else:
            admission = Admission.KEPT
        if confirmed and (another := _another(confirmed[-1], header)):
            after.reused.append((header.sop_instance_uid, another))
            audit.add(connection, replace(_event(one, another), event="uid-used-again", outcome="failure"))
    audit.add(connection, _event(one, f"{admission}: {note}" if note else str(admission)))
    return admission


class _Known(NamedTuple):
    """A revision that is there, in the order of _KNOWN's columns."""

    id: int
    revision: int
    digest: str
    removed_at: float | None
    path: str
    size_bytes: int
    study_instance_uid: str
    patient_id: str
    calling_ae_title: str
    host: str
    certificate_sha256: str
    unconfirmed: int
    spool: str


def _take_duplicate(connection: Connection, one: Arrival, known: _Known, now: float, after: _After) -> None:
    """The new blob takes the place of the one that the row has, which may be damaged or gone: what was just received is whole.

    Not while a worker reads the one that is there: then the new one goes. Nor from a spool in the place of what the bucket has by
    its row: reception asks the bucket nothing then.
    """
    values: dict[str, object] = {"received_at": now, "digest": one.stored.digest}
    is_read = exists().where(jobs.c.instance_id == known.id, jobs.c.state == JobState.RUNNING)
    in_bucket = bool(one.stored.spool) and not known.spool and known.removed_at is None
    is_known_there = in_bucket or (known.removed_at is None and is_there(one.blobs, known.path, known.size_bytes, known.spool))
    if in_bucket or (is_known_there and connection.execute(select(is_read)).scalar()):
        after.discarded.append(one.stored.path)
    else:
        if known.spool == one.blobs.spool:  # what is elsewhere goes when its own host, or the sweep, finds it without a row
            after.discarded.append(known.path)
        stored = one.stored
        values |= {"path": stored.path, "size_bytes": stored.size_bytes, "spool": stored.spool, "removed_at": None}
    if not is_known_there:  # with its file was gone what a job could do; now it is back
        connection.execute(
            update(jobs)
            .where(continues_with_its_file(), jobs.c.instance_id == known.id)
            .values(state=JobState.NEW, attempts=0, not_before=0, reasons="[]", finished_at=None)
        )
    connection.execute(update(instances).where(instances.c.id == known.id).values(**values))
    if one.on_duplicate is not None:
        one.on_duplicate(connection, known.id)


def _is_sender_of(known: _Known, sender: Sender) -> bool:
    """Whether an instance came from this sender: the same certificate, or the same AE title at the same address."""
    if known.certificate_sha256 and known.certificate_sha256 == sender.certificate_sha256:
        return True
    # an address may be unknown: that of an instance that has lost its row
    if known.calling_ae_title != sender.calling_ae_title:
        return False
    return not (known.host and sender.host) or plain_address(known.host) == plain_address(sender.host)


def _another(known: _Known, header: InstanceHeader) -> str:
    """What is not as it was when the UID came before, in words; empty if it is."""
    if known.study_instance_uid != header.study_instance_uid:
        return _ANOTHER.format("study")
    return _ANOTHER.format("patient ID") if known.patient_id != header.patient_id[:64] else ""


def _event(one: Arrival, detail: str) -> AuditEvent:
    return AuditEvent(
        event="instance-received",
        user=one.sender.calling_ae_title,
        host=one.sender.host,
        patient_id=one.stored.header.patient_id[:64],
        study_instance_uid=one.stored.header.study_instance_uid,
        sop_instance_uid=one.stored.header.sop_instance_uid,
        detail=detail,
        accession_number=one.stored.header.accession_number[:64],
    )
