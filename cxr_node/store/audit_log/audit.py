"""The audit log: who did what to which study, when, with which outcome. Rows are append-only.

`audit_chain` chains them; database triggers reject changes, and the deletion of rows that were not exported.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from typing import Any

from sqlalchemy import Connection, Engine, insert

from cxr_node.records import AuditEvent
from cxr_node.store.audit_log.audit_query import NO_SUCCESS, OBJECT, PERSON, AuditSearch, query_of
from cxr_node.store.database import write
from cxr_node.store.prepared import Prepared
from cxr_node.store.schema import audit

__all__ = ["COLUMNS", "NO_SUCCESS", "OBJECT", "PERSON", "add", "record", "search"]

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


def search(  # noqa: PLR0913 - each is a filter
    engine: Engine,
    *,
    patient_id: str = "",
    study_instance_uid: str = "",
    accession_number: str = "",
    sop_instance_uid: str = "",
    event: str = "",
    events: Collection[str] = (),
    user: str = "",
    host: str = "",
    outcome: str = "",
    about: str = "",
    words: str = "",
    since: float | None = None,
    until: float | None = None,
    after_id: int | None = None,
    before_id: int | None = None,
    row_id: int | None = None,
    limit: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Events that match all that is given, oldest first; with `after_id` in the order in which they were added.

    Args:
        engine: the database.
        patient_id: exact, or with * as a wildcard; likewise all that follow up to `outcome`.
        study_instance_uid: see patient_id.
        accession_number: also finds what was recorded of its studies without it.
        sop_instance_uid: see patient_id.
        event: see patient_id.
        events: any of these; empty: of any event.
        user: the calling AE title, the destination, or the person's user name.
        host: the address that it came from.
        outcome: success, failure or rejected; or NO_SUCCESS.
        about: PERSON: only what names a patient; OBJECT: only what names a study or has a detail; empty: all.
        words: all of these words are in `detail`, one with * after it as the beginning of a word, which takes longer where that
            is common.
        since: UTC seconds since the epoch, inclusive.
        until: UTC seconds since the epoch, exclusive.
        after_id: only rows that were added after this one.
        before_id: only rows before this one: the next page.
        row_id: only this row.
        limit: the newest rows, at most this many.
    """
    exact = {
        **{"patient_id": patient_id, "study_instance_uid": study_instance_uid, "sop_instance_uid": sop_instance_uid},
        **{"event": event, "user": user, "host": host, "outcome": outcome},
    }
    times, numbers = (since, until), (after_id, before_id, row_id)
    wanted = AuditSearch(exact, accession_number, events, about, words, *times, *numbers, limit)
    with engine.connect() as connection:
        for row in connection.execute(query_of(connection, wanted)).mappings():
            yield dict(row)
