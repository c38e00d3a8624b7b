"""The figures of `cxr-node status`, in plain SQL.

Health checks run twice a minute, and loading SQLAlchemy takes more time and memory than everything else. On SQLite it is
therefore not loaded; on PostgreSQL the same SQL goes through it.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import quote

from cxr_node.errors import StoreError
from cxr_node.records import DeliveryState, JobState
from cxr_node.security.nofollow import refuse_links
from cxr_node.settings import Settings
from cxr_node.store.revision import SCHEMA_REVISION, cure_of, newer_schema, no_node
from cxr_node.store.views.peer_overview import Query

# ruff: noqa: S608 - what is put into SQL here are names of tables, columns and states

_BUSY_TIMEOUT_S = 30.0
_OPEN_JOBS = f"'{JobState.NEW}', '{JobState.RUNNING}'"
_OPEN_DELIVERIES = f"'{DeliveryState.WAITING}', '{DeliveryState.SENDING}', '{DeliveryState.COMMITTING}'"


@contextmanager
def open_read_only(settings: Settings) -> Iterator[Query]:
    """Connect to the database of a node that there is, for looking alone: nothing is made or migrated.

    Raises:
        StoreError: there is none, it can't be reached, or a program of another version has to open it.
    """
    if settings.database.url:
        with _through_sqlalchemy(settings) as query:
            yield query
        return
    path = settings.node.data_dir.absolute() / "cxr-node.sqlite3"
    if not path.is_file():
        raise StoreError(no_node(settings))
    refuse_links(*(path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm", "-journal")))
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=_BUSY_TIMEOUT_S)) as connection:

            def query(sql: str, **values: Any) -> list[tuple[Any, ...]]:
                return connection.execute(sql, values).fetchall()

            _check_revision(query)
            yield query
    except sqlite3.Error as error:
        raise StoreError(f"The database {path} can't be used: {error}.{cure_of(str(error))}") from error


def check_revision(current: str | None) -> None:
    """See whether a schema is the one that this program knows.

    Raises:
        StoreError: it isn't.
    """
    if current is None:
        raise StoreError("There is no node in the database that database.url names: start it once with `cxr-node serve`.")
    if current != SCHEMA_REVISION:
        raise StoreError(
            newer_schema(current)
            if current > SCHEMA_REVISION
            else "The database is of an older version: start the node once, which upgrades it."
        )


def count_states(query: Query) -> dict[str, Any]:
    """`received`, `jobs` and `deliveries` by state, the oldest waiting ages in seconds, and the last successes.

    Times are UTC seconds since the epoch, or None where there is none.
    """

    def by_state(table: str, states: type[JobState] | type[DeliveryState]) -> dict[str, int]:
        found = {str(state): int(count) for state, count in query(f"SELECT state, count(*) FROM {table} GROUP BY state")}
        return {state.value: found.get(state.value, 0) for state in states}

    ((count, size_bytes, unanalysed, last_at),) = query(
        "SELECT count(*), coalesce(sum(size_bytes), 0), coalesce(sum(CASE WHEN note != '' THEN 1 ELSE 0 END), 0), "
        "max(received_at) FROM instances"
    )
    now = time.time()
    ((oldest_job,),) = query(f"SELECT min(created_at) FROM jobs WHERE state IN ({_OPEN_JOBS})")
    ((oldest_delivery,),) = query(f"SELECT min(created_at) FROM deliveries WHERE state IN ({_OPEN_DELIVERIES})")
    ((analysed_at,),) = query(
        "SELECT max(finished_at) FROM jobs WHERE state = :done AND finished_at IS NOT NULL", done=str(JobState.DONE)
    )
    ((sent_at,),) = query("SELECT max(sent_at) FROM deliveries")
    return {
        "received": {
            "instances": count,
            "bytes": int(size_bytes),  # PostgreSQL's sum is a Decimal
            "kept_unanalysed": int(unanalysed),
            "last_at": last_at,
        },
        "jobs": by_state("jobs", JobState),
        "deliveries": by_state("deliveries", DeliveryState),
        "oldest_waiting_job_s": None if oldest_job is None else max(0.0, now - oldest_job),
        "oldest_waiting_delivery_s": None if oldest_delivery is None else max(0.0, now - oldest_delivery),
        "last_analysed_at": analysed_at,
        "last_sent_at": sent_at,
    }


def held_by_reason(query: Query) -> list[dict[str, Any]]:
    """What waits for a person: `what` (jobs, or deliveries to a destination), `count` and `reason`, the most first."""
    held = str(DeliveryState.HELD)
    found = [
        {"what": "jobs", "count": count, "reason": " ".join(json.loads(reasons))}
        for reasons, count in query("SELECT reasons, count(*) FROM jobs WHERE state = :held GROUP BY reasons", held=held)
    ]
    for what, table, column in (
        ("deliveries", "deliveries", "destination"),
        ("commitment reports", "commitment_reports", "ae_title"),
    ):
        sql = f"SELECT {column}, reason, count(*) FROM {table} WHERE state = :held GROUP BY {column}, reason"
        found += [
            {"what": f"{what} to {name}", "count": count, "reason": reason} for name, reason, count in query(sql, held=held)
        ]
    return sorted(found, key=lambda row: -row["count"])


def spools(query: Query) -> list[dict[str, Any]]:
    """The spools with instances that the bucket does not have yet, the one whose oldest has waited longest first.

    Each has `name`, `host`, `images`, `bytes`, `oldest_s`, and `last_seen_at`: when its uploads ran last, or None.
    """
    sql = (
        "SELECT i.spool, coalesce(max(s.host), ''), count(*), sum(i.size_bytes), min(i.received_at), max(s.seen_at) "
        "FROM instances i LEFT JOIN spools s ON s.name = i.spool WHERE i.spool != '' AND i.removed_at IS NULL "
        "GROUP BY i.spool ORDER BY 5"
    )
    now = time.time()
    return [
        {
            "name": name,
            "host": host or f"spool {name}",
            "images": int(images),
            "bytes": int(size_bytes),
            "oldest_s": max(0.0, now - oldest),
            "last_seen_at": seen_at,
        }
        for name, host, images, size_bytes, oldest, seen_at in query(sql)
    ]


def _check_revision(query: Query) -> None:
    there = query("SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'")[0][0]
    rows = query("SELECT version_num FROM alembic_version") if there else []
    check_revision(rows[0][0] if rows else None)


@contextmanager
def _through_sqlalchemy(settings: Settings) -> Iterator[Query]:
    from cxr_node.store.database import inspect_database, querying

    engine = inspect_database(settings)
    try:
        with querying(engine) as query:
            yield query
    finally:
        engine.dispose()
