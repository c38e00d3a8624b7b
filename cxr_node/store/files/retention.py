"""Retention: removes files that have expired, and records it. Rows stay.

An instance may be removed when its job has ended and its storage commitment has expired, a result when all its deliveries have
ended. The row is changed first, guarded by these conditions, in the transaction that writes the audit log; only then is the blob
deleted. A crash in between leaves an orphan, which `consistency` finds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Engine, Table, and_, exists, func, or_, select, update

from cxr_node.records import AuditEvent, DeliveryState, JobState, quantity
from cxr_node.store import faults
from cxr_node.store.audit_log import audit
from cxr_node.store.database import write
from cxr_node.store.schema import deliveries, instances, jobs, results

_BATCH = 500
_AT_ONCE = 20


def remove_expired(engine: Engine, received_days: float, results_days: float, remove: Callable[[str], None]) -> tuple[int, int]:
    """Remove files past their time; an instance not yet analysed and a result not yet sent stay, however old.

    Args:
        engine: the database.
        received_days: how long instances are kept after reception.
        results_days: how long results are kept after they were composed.
        remove: deletes the blob under a key.

    Returns:
        how many instances and how many results were removed.
    """
    counts = [0, 0]
    for place, days in enumerate((received_days, results_days)):
        while removed := _remove_oldest(engine, _TABLES[place], time.time() - days * 86400, remove, _BATCH):
            counts[place] += removed
    if any(counts):
        audit.record(engine, AuditEvent("retention", detail=f"{_in_words(counts)} removed"))
    return counts[0], counts[1]


def _in_words(counts: list[int]) -> str:
    return f"{quantity(counts[0], 'instance')}, {quantity(counts[1], 'result')}"


def make_room(engine: Engine, is_enough: Callable[[], bool], remove: Callable[[str], None]) -> tuple[int, int]:
    """Remove what may be removed before its time, oldest first, until there is room; instances, then results.

    Returns:
        how many instances and how many results were removed.
    """
    counts = [0, 0]
    for place, table in enumerate(_TABLES):
        while not is_enough() and (removed := _remove_oldest(engine, table, time.time(), remove, _AT_ONCE)):
            counts[place] += removed
    if any(counts):
        detail = f"{_in_words(counts)} removed early: the disk was full"
        audit.record(engine, AuditEvent("retention", detail=detail))
    return counts[0], counts[1]


_TABLES = (instances, results)
_OPEN = (JobState.NEW, JobState.RUNNING, JobState.HELD)


def _remove_oldest(engine: Engine, table: Table, before: float, remove: Callable[[str], None], limit: int) -> int:
    now = time.time()
    since, may_go = _may_go(table, now)
    free = and_(table.c.removed_at.is_(None), since < before, may_go)
    candidates = select(table.c.id).where(free).order_by(since).limit(limit)
    with engine.connect() as connection:
        if connection.execute(candidates.limit(1)).first() is None:
            return 0
    with write(engine) as connection:
        # locked first and looked at again: on PostgreSQL a job or a delivery may have been opened since the first look
        ids = connection.execute(candidates.with_for_update(skip_locked=True)).scalars().all()
        removed = connection.execute(
            update(table).where(table.c.id.in_(ids), free).values(removed_at=now).returning(table.c.id, table.c.path)
        ).all()
        if table is instances:
            audit.add(connection, *_removals(connection, [row.id for row in removed]))
    faults.point("removal-noted")
    for row in removed:
        remove(row.path)
    return len(removed)


def _removals(connection: Connection, ids: list[int]) -> list[AuditEvent]:
    columns = (instances.c.patient_id, instances.c.study_instance_uid, instances.c.sop_instance_uid)
    rows = connection.execute(select(*columns).where(instances.c.id.in_(ids))).all()
    told = [AuditEvent("instance-removed", **row._mapping) for row in rows]
    studies = {row.study_instance_uid: row.patient_id for row in rows if row.study_instance_uid}
    there = (instances.c.study_instance_uid.in_(studies), instances.c.removed_at.is_(None))
    left = set(connection.execute(select(instances.c.study_instance_uid).where(*there)).scalars())
    return told + [
        AuditEvent("study-removed", patient_id=patient_id, study_instance_uid=study)
        for study, patient_id in studies.items()
        if study not in left
    ]


def _may_go(table: Table, now: float) -> tuple[Any, Any]:
    """Since when a table's files are there, and whether nobody needs them any more.

    What a correction ended is needed until that is analysed: it may turn out to be the same image, and then the end is undone.
    """
    corrections = jobs.alias("corrections")
    is_open = corrections.c.state.in_(_OPEN)
    if table is instances:
        undecided = exists().where(corrections.c.instance_id == jobs.c.superseded_by, is_open)
        # images that nobody accepts in this time must not fill the disk
        waits_for_nobody = and_(instances.c.unconfirmed != 0, jobs.c.state == JobState.HELD)
        is_needed = or_(and_(jobs.c.state.in_(_OPEN), ~waits_for_nobody), undecided)
        pending_job = exists().where(jobs.c.instance_id == instances.c.id, is_needed)
        promised = func.coalesce(instances.c.keep_until, 0.0) > now
        return instances.c.received_at, and_(~pending_job, ~promised)
    undecided = exists().where(corrections.c.instance_id == deliveries.c.superseded_by, is_open)
    pending_delivery = exists().where(
        deliveries.c.result_id == results.c.id,
        or_(deliveries.c.state.not_in((DeliveryState.SENT, DeliveryState.CANCELLED)), undecided),
    )
    return results.c.created_at, ~pending_delivery
