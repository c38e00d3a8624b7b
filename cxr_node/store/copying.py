"""Copies a node's database into an empty one of another kind, SQLite or PostgreSQL, and compares every row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any

from sqlalchemy import Connection, Engine, Integer, String, Table, func, insert, inspect, literal, select, text, tuple_
from sqlalchemy.exc import DBAPIError

from cxr_node.errors import StoreError
from cxr_node.settings import DatabaseSettings, Settings
from cxr_node.store import database
from cxr_node.store.audit_log import audit_chain
from cxr_node.store.database import open_database, write
from cxr_node.store.postgresql import in_print
from cxr_node.store.schema import home, metadata

_BATCH = 1000

COPIED = tuple(table for table in metadata.sorted_tables if table is not home)
"""In an order in which rows follow those they reference. `home` identifies the data folder: each database has its own."""


def open_empty(settings: Settings, url: str) -> Engine:
    """The database to copy to, with its tables made.

    Raises:
        StoreError: it can't be used, or is not empty.
    """
    target = settings.model_copy(update={"database": DatabaseSettings(url=url)})
    engine = database._connect(target)
    with database._store_errors(engine):
        _check_empty(engine)
    engine.dispose()
    return open_database(target)


def copy_rows(source: Engine, target: Engine, tell: Callable[[str, int], None]) -> dict[str, int]:
    """Copy every row and compare each with what was written, in one transaction: all of it is there afterwards, or nothing.

    Args:
        source: of a node that doesn't run.
        target: from `open_empty`.
        tell: told the name of each table, and how many rows it has, when it is copied and compared.

    Returns:
        how many rows each table has.

    Raises:
        StoreError: a row can't be kept there, or is not the same afterwards; says which.
    """
    counts = {}
    with source.connect() as reading, write(target) as writing:
        if source.dialect.name == "postgresql":  # all tables as they are at one moment
            reading.execution_options(isolation_level="REPEATABLE READ")
        for table in COPIED:
            counts[table.name] = _copy(reading, writing, table)
            _compare(reading, writing, table)
            tell(table.name, counts[table.name])
        if target.dialect.name == "postgresql":
            set_sequences(writing)
        else:
            audit_chain.index_copied(writing)
    return counts


def _check_empty(engine: Engine) -> None:
    there = set(inspect(engine).get_table_names())
    with engine.connect() as connection:
        for table in COPIED:
            if table.name in there and connection.execute(select(func.count()).select_from(table)).scalar():
                raise StoreError(f"{in_print(engine)} is not empty: its table {table.name} has rows. Name a new, empty database.")
    there = {name for name in there if not name.startswith("audit_text")}  # what SQLite keeps for searching words
    if there and not there <= {*metadata.tables, "alembic_version"}:
        strange = ", ".join(sorted(there - {*metadata.tables, "alembic_version"})[:5])
        raise StoreError(f"{in_print(engine)} holds tables that are not the node's ({strange}): create its own database.")


def _rows(connection: Connection, table: Table) -> Iterator[dict[str, Any]]:
    """All rows by their primary key, some at a time."""
    columns = list(table.primary_key.columns)
    on_postgresql = connection.dialect.name == "postgresql"
    keys = [column.collate("C") if isinstance(column.type, String) and on_postgresql else column for column in columns]
    query = select(table).order_by(*keys).limit(_BATCH)
    rows = connection.execute(query).mappings().all()
    while rows:
        yield from map(dict, rows)
        last = tuple_(*(literal(rows[-1][column.name], column.type) for column in columns))
        rows = connection.execute(query.where(tuple_(*keys) > last)).mappings().all() if len(rows) == _BATCH else ()


def _copy(reading: Connection, writing: Connection, table: Table) -> int:
    count = 0
    batch: list[dict[str, Any]] = []

    def flush() -> None:
        reason = _why_not(table, batch) if writing.dialect.name == "postgresql" else ""
        try:
            if not reason:
                writing.execute(insert(table), batch)
        except (DBAPIError, ValueError) as error:  # whose words may quote the row
            reason = f"{_name_of(table, batch[0])} to {_name_of(table, batch[-1])}: {type(error).__name__}"
        if reason:
            there = in_print(writing.engine)
            raise StoreError(f"A row of {table.name} can't be kept in {there} ({reason}). Nothing was copied.")
        batch.clear()

    for row in _rows(reading, table):
        batch.append(row)
        count += 1
        if len(batch) == _BATCH:
            flush()
    if batch:
        flush()
    return count


def _why_not(table: Table, rows: list[dict[str, Any]]) -> str:
    """What PostgreSQL can't keep and SQLite takes: texts longer than their column, and texts with a NUL, which it would cut."""
    for row in rows:
        for column in table.columns:
            value, longest = row[column.name], getattr(column.type, "length", None)
            if isinstance(value, str) and (("\0" in value) or (longest is not None and len(value) > longest)):
                what = "holds a NUL" if "\0" in value else f"has {len(value)} characters, {longest} fit"
                return f"{_name_of(table, row)}: {column.name} {what}"
    return ""


def _compare(reading: Connection, writing: Connection, table: Table) -> None:
    for ours, theirs in zip_longest(_rows(reading, table), _rows(writing, table)):
        if ours == theirs:
            continue
        differing = ", ".join(name for name in ours if ours[name] != theirs[name]) if ours and theirs else "the whole row"
        raise StoreError(
            f"{table.name}, row {_name_of(table, ours or theirs)}: {differing} differs after copying. Nothing was copied."
            " Does a cxr-node still run on this database, on another machine perhaps?"
        )


def set_sequences(connection: Connection) -> None:
    """On PostgreSQL, the next row gets the number after the highest there is, where rows were entered with theirs."""
    for table in COPIED:
        keys = list(table.primary_key.columns)
        if len(keys) > 1 or not isinstance(keys[0].type, Integer):
            continue
        key = keys[0]
        sequence = connection.execute(
            text("SELECT pg_get_serial_sequence(quote_ident(:table), :column)"), {"table": table.name, "column": key.name}
        ).scalar()
        highest = connection.execute(select(func.max(key))).scalar()
        if sequence is not None and highest is not None:
            connection.execute(
                text("SELECT setval(CAST(:sequence AS regclass), :highest)"), {"sequence": sequence, "highest": highest}
            )


def _name_of(table: Table, row: dict[str, Any]) -> str:
    return ", ".join(f"{key.name} {row[key.name]}" for key in table.primary_key.columns)
