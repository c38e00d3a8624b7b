"""Checks the schema of a database against this program's; `database` migrates."""

from __future__ import annotations

import sqlite3
from importlib import resources
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from cxr_node.errors import StoreError
from cxr_node.store.postgresql import in_print
from cxr_node.store.revision import SCHEMA_REVISION, newer_schema
from cxr_node.store.schema import metadata

_RESTORE = "stop the node and restore the newest backup (`cxr-node restore`; PostgreSQL with its own tools)."
_SHOWN = 5
_UNLIKE = ("already exists", "duplicate column", "no such ", "has no column")
"""What SQLite says, without a code of its own, of a migration whose tables aren't as it expects them."""
_SYNTAX_OR_ACCESS, _NOT_ALLOWED = "42", "42501"
"""The class of SQLSTATEs that say the same on PostgreSQL, and the one of them that doesn't."""


def migrations_folder() -> Path:
    """Where the program's migrations lie: a folder that Alembic reads."""
    return Path(str(resources.files("cxr_node.store") / "migrations"))


def check_shipped() -> None:
    """See that the migrations were installed with the program.

    Raises:
        StoreError: they weren't, or not up to the schema that this program works with.
    """
    folder = migrations_folder()
    if not (folder / "env.py").is_file() or not any((folder / "versions").glob(f"{SCHEMA_REVISION}_*.py")):
        raise incomplete()


def incomplete() -> StoreError:
    """What to tell a person whose installation lacks migrations."""
    return StoreError(
        f"This installation of cxr-node is incomplete, migrations of the database are missing in {migrations_folder()}: "
        "install it again, from a whole wheel or image."
    )


def revision_of(connection: Connection) -> str | None:
    """The schema's revision as the database has it; None in one that is empty.

    Raises:
        StoreError: it is not one revision, or there are tables of a node and none.
    """
    tables = set(inspect(connection).get_table_names())
    found = []
    if "alembic_version" in tables:
        found = list(connection.execute(text("SELECT version_num FROM alembic_version")).scalars())
    if len(found) > 1 or (not found and tables & set(metadata.tables)):
        told = f"more than one schema ({_quoted(found)})" if found else "tables of a node, or of the same names, and no schema"
        raise StoreError(
            f"The database {name_of(connection.engine)} has {told}, so that it can't be told what is in it: {_RESTORE[:-1]}, "
            "or begin with an empty one."
        )
    return str(found[0]) if found else None


def unknown(revision: str, engine: Engine) -> StoreError:
    """What to tell a person whose database has a revision that isn't among the migrations."""
    if revision.isdecimal() and len(revision) == len(SCHEMA_REVISION) and revision > SCHEMA_REVISION:
        return StoreError(newer_schema(revision))
    return StoreError(
        f"The database {name_of(engine)} has the schema {_quoted([revision])}, which no version of cxr-node up to this one has "
        f"made (this program works with {SCHEMA_REVISION}): {_RESTORE}"
    )


def check_tables(connection: Connection) -> None:
    """See that a database of this program's revision has the tables and columns that the program reads and writes.

    Raises:
        StoreError: some are missing.
    """
    there = {
        name: {column["name"] for column in columns} for (_, name), columns in inspect(connection).get_multi_columns().items()
    }
    missing = [f"the table {name}" for name in metadata.tables if name not in there]
    missing += [
        f"the column {name}.{column.name}"
        for name, table in metadata.tables.items()
        if name in there
        for column in table.columns
        if column.name not in there[name]
    ]
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else "")
        raise StoreError(
            f"The database {name_of(connection.engine)} says that it has the schema {SCHEMA_REVISION}, and lacks {shown}: "
            f"{_RESTORE}"
        )


def unlike(error: SQLAlchemyError, revision: str, engine: Engine) -> StoreError | None:
    """What to tell a person if a migration failed because the tables aren't those of the revision that the database names."""
    cause = getattr(error, "orig", None)
    state = getattr(cause, "sqlstate", None) or ""
    said = str(cause).partition("\n")[0]
    if isinstance(cause, sqlite3.Error):
        is_it = any(words in said for words in _UNLIKE)
    else:
        is_it = state.startswith(_SYNTAX_OR_ACCESS) and state != _NOT_ALLOWED
    if not is_it:
        return None
    return StoreError(
        f"The database {name_of(engine)} can't be brought from the schema {revision} to {SCHEMA_REVISION} ({said}), since its "
        f"tables aren't those of that schema, and was left as it is: {_RESTORE}"
    )


def name_of(engine: Engine) -> str:
    """The name of the database for messages: its file, or its URL without secrets."""
    return in_print(engine) if engine.dialect.name == "postgresql" else str(engine.url.database)


def _quoted(revisions: list[str]) -> str:
    return ", ".join(repr(str(revision)[:20]) for revision in sorted(map(str, revisions))[:_SHOWN])
