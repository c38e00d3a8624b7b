"""The figures of `cxr-node status`, asked for in plain SQL.

A health check asks for them twice a minute, and SQLAlchemy takes more time and memory to load than all the rest: on SQLite it
is not loaded. Over PostgreSQL the same SQL goes through it.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import quote

from cxr_node.errors import StoreError
from cxr_node.records import DeliveryState, JobState
from cxr_node.settings import Settings
from cxr_node.store.revision import SCHEMA_REVISION, newer_schema

# ruff: noqa: S608 - what is put into SQL here are names of tables, columns and states

Ask = Callable[..., list[tuple[Any, ...]]]
"""Asks the database: SQL with parameters as `:name`, and these by name; gives rows."""

_BUSY_TIMEOUT_S = 30.0
_OPEN_JOBS = f"'{JobState.NEW}', '{JobState.RUNNING}'"
_OPEN_DELIVERIES = f"'{DeliveryState.WAITING}', '{DeliveryState.SENDING}', '{DeliveryState.COMMITTING}'"


@contextmanager
def look(settings: Settings) -> Iterator[Ask]:
    """Connect to the database of a node that there is, for looking alone: nothing is made or migrated.

    Raises:
        StoreError: there is none, it can't be reached, or a program of another version has to open it.
    """
    if settings.database.url:
        with _through_sqlalchemy(settings) as ask:
            yield ask
        return
    path = settings.node.data_dir.absolute() / "cxr-node.sqlite3"
    if not path.is_file():
        raise StoreError(no_node(settings))
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=_BUSY_TIMEOUT_S)) as connection:

            def ask(sql: str, **values: Any) -> list[tuple[Any, ...]]:
                return connection.execute(sql, values).fetchall()

            _check_revision(ask)
            yield ask
    except sqlite3.Error as error:
        raise StoreError(f"The database {path} can't be used: {error}.{cure_of(str(error))}") from error


def no_node(settings: Settings) -> str:
    """What to tell a person who asks about a node that isn't there."""
    return (
        f"There is no node in {settings.node.data_dir.absolute()}: name its settings with --config, or start it with "
        "`cxr-node serve`."
    )


def cure_of(said: str) -> str:
    """What to do about what SQLite said."""
    if "malformed" in said or "not a database" in said:
        return " It is damaged: stop the node and `cxr-node restore` the newest backup."
    if "readonly" in said:
        return " It, or the data folder, is read-only for this user: change the owner, or the way it is mounted."
    return ""


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
            else "The database is one of an older version: start the node once, which brings it up to date."
        )


def count_states(ask: Ask) -> dict[str, Any]:
    """`received`, `jobs` and `deliveries` by state, the oldest waiting ages in seconds, and the last successes.

    Times are UTC seconds since the epoch, or None where there is none.
    """

    def by_state(table: str, states: type[JobState] | type[DeliveryState]) -> dict[str, int]:
        found = {str(state): int(count) for state, count in ask(f"SELECT state, count(*) FROM {table} GROUP BY state")}
        return {state.value: found.get(state.value, 0) for state in states}

    ((count, size_bytes, unanalysed, last_at),) = ask(
        "SELECT count(*), coalesce(sum(size_bytes), 0), coalesce(sum(CASE WHEN note != '' THEN 1 ELSE 0 END), 0), "
        "max(received_at) FROM instances"
    )
    now = time.time()
    ((oldest_job,),) = ask(f"SELECT min(created_at) FROM jobs WHERE state IN ({_OPEN_JOBS})")
    ((oldest_delivery,),) = ask(f"SELECT min(created_at) FROM deliveries WHERE state IN ({_OPEN_DELIVERIES})")
    ((analysed_at,),) = ask("SELECT max(finished_at) FROM jobs WHERE state = :done", done=str(JobState.DONE))
    ((sent_at,),) = ask("SELECT max(sent_at) FROM deliveries")
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


def held_by_reason(ask: Ask) -> list[dict[str, Any]]:
    """What waits for a person: `what` (jobs, or deliveries to a destination), `count` and `reason`, the most first."""
    held = str(DeliveryState.HELD)
    found = [
        {"what": "jobs", "count": count, "reason": " ".join(json.loads(reasons))}
        for reasons, count in ask("SELECT reasons, count(*) FROM jobs WHERE state = :held GROUP BY reasons", held=held)
    ]
    for what, table, column in (
        ("deliveries", "deliveries", "destination"),
        ("commitment reports", "commitment_reports", "ae_title"),
    ):
        sql = f"SELECT {column}, reason, count(*) FROM {table} WHERE state = :held GROUP BY {column}, reason"
        found += [{"what": f"{what} to {name}", "count": count, "reason": reason} for name, reason, count in ask(sql, held=held)]
    return sorted(found, key=lambda row: -row["count"])


def _check_revision(ask: Ask) -> None:
    there = ask("SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'")[0][0]
    rows = ask("SELECT version_num FROM alembic_version") if there else []
    check_revision(rows[0][0] if rows else None)


@contextmanager
def _through_sqlalchemy(settings: Settings) -> Iterator[Ask]:
    from cxr_node.store.database import asking, look_into_database

    engine = look_into_database(settings)
    try:
        with asking(engine) as ask:
            yield ask
    finally:
        engine.dispose()
