"""The audit log: who did what to which study, when, with which outcome. Rows are only ever added."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Engine, insert, select

from cxr_node.records import AuditEvent
from cxr_node.store.database import write
from cxr_node.store.prepared import Prepared
from cxr_node.store.schema import audit

COLUMNS = tuple(audit.columns.keys())
"""Of what `search` gives, in their order."""

_NEW_EVENT = Prepared(insert(audit).inline())


def record(engine: Engine, *events: AuditEvent) -> None:
    """Add events in a transaction of their own."""
    with write(engine) as connection:
        add(connection, *events)


def add(connection: Connection, *events: AuditEvent) -> None:
    """Add events to the caller's transaction, so that they stand or fall with what they tell of."""
    now = time.time()
    for one in events:
        _NEW_EVENT.execute(connection, {"at": now, **vars(one)})


def search(
    engine: Engine,
    *,
    patient_id: str = "",
    study_instance_uid: str = "",
    event: str = "",
    user: str = "",
    since: float | None = None,
    until: float | None = None,
    limit: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Events that match all that is given, oldest first.

    Args:
        engine: the database.
        patient_id: exact, or with * as a wildcard; likewise study_instance_uid, event and user.
        study_instance_uid: see patient_id.
        event: see patient_id.
        user: the calling AE title or the operating system's user.
        since: UTC seconds since the epoch, inclusive.
        until: UTC seconds since the epoch, exclusive.
        limit: at most so many, the newest.
    """
    query = select(audit)
    for column, value in (
        (audit.c.patient_id, patient_id),
        (audit.c.study_instance_uid, study_instance_uid),
        (audit.c.event, event),
        (audit.c.user, user),
    ):
        if "*" in value:
            pattern = value.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("*", "%")
            query = query.where(column.ilike(pattern, escape="\\"))
        elif value:
            query = query.where(column == value)
    if since is not None:
        query = query.where(audit.c.at >= since)
    if until is not None:
        query = query.where(audit.c.at < until)
    if limit is not None:
        newest = query.order_by(audit.c.id.desc()).limit(limit).subquery()
        query = select(newest).order_by(newest.c.id)
    else:
        query = query.order_by(audit.c.id)
    with engine.connect() as connection:
        for row in connection.execute(query).mappings():
            yield dict(row)
