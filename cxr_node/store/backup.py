"""Checks, copies and restores the SQLite database while it is in use. PostgreSQL has its own tools."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from cxr_node.errors import StoreError
from cxr_node.security.nofollow import open_file, refuse_links
from cxr_node.settings import Settings
from cxr_node.store.revision import SCHEMA_REVISION, newer_schema

if TYPE_CHECKING:
    from sqlalchemy import Engine
from sqlalchemy.exc import DatabaseError, OperationalError

NOT_OURS = (
    "database.url names a database that is not the node's own: restore it with its own tools (pg_restore) while the node is "
    "stopped, then `cxr-node doctor --mend`, which enters what was received since."
)
"""What to say to who would restore another database than SQLite."""

_NAME = "cxr-node-%Y%m%dT%H%M%SZ.sqlite3"
_HOURLY, _DAILY = 6, 7


def database_file(settings: Settings) -> Path:
    """The SQLite database in the data folder, where database.url is empty."""
    return settings.node.data_dir.absolute() / "cxr-node.sqlite3"


def check_integrity(engine: Engine, *, thoroughly: bool = False) -> None:
    """Have SQLite look through its file; `thoroughly` compares indices with their tables too.

    Raises:
        StoreError: it is damaged.
    """
    if engine.dialect.name != "sqlite":
        return
    with engine.connect() as connection:
        pragma = "integrity_check" if thoroughly else "quick_check"
        try:
            found = [str(row[0]) for row in connection.exec_driver_sql(f"PRAGMA {pragma}(5)")]
        except DatabaseError as error:  # SQLite reports some damage as a result, and some as an error
            if isinstance(error, OperationalError):  # locked, or away
                raise
            found = [str(error.orig)]
        _judge(str(engine.url.database), found)


def back_up(settings: Settings) -> Path | None:
    """Copy the database as it is at one moment, while it is in use, and thin out older copies; gives the new one.

    None where the database is not SQLite.

    Raises:
        StoreError: it can't be written, or the copy is damaged.
    """
    if settings.database.url:
        return None
    folder = backup_folder(settings)
    newest = next((taken_at for path in backups(settings) if (taken_at := _taken_at(path))), None)
    # names are of whole seconds, and tell which is the newest: none replaces another, and none is thinned out at once
    moment = max(time.time(), newest.timestamp() + 1 if newest else 0)
    final = folder / time.strftime(_NAME, time.gmtime(moment))
    temporary = final.with_name(f"{final.stem}-{os.urandom(8).hex()}.tmp")
    refuse_links(database_file(settings))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        _copy(database_file(settings), temporary)
        check_file(temporary)
        temporary.replace(final)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"No backup could be written to {folder}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    found = backups(settings)
    for path in set(found) - set(worth_keeping(found)):
        path.unlink(missing_ok=True)
    return final


def backup_folder(settings: Settings) -> Path:
    """Where backups lie."""
    return settings.database.backup_dir or settings.node.data_dir.absolute() / "backup"


def backups(settings: Settings) -> list[Path]:
    """The backups that there are, newest first."""
    return sorted((path for path in backup_folder(settings).glob("cxr-node-*.sqlite3") if _taken_at(path)), reverse=True)


def worth_keeping(found: Sequence[Path]) -> list[Path]:
    """Of backups, newest first: the newest few, and the newest of each of the last days."""
    newest_of_day: dict[str, Path] = {}
    for path in found:
        if moment := _taken_at(path):
            newest_of_day.setdefault(moment.strftime("%Y%m%d"), path)
    return sorted({*found[:_HOURLY], *list(newest_of_day.values())[:_DAILY]}, reverse=True)


def restore(settings: Settings, backup: Path) -> Path | None:
    """Put a backup in the database's place; gives where the one that was there has gone, None if there was none.

    The node must not run.

    Raises:
        StoreError: the backup is damaged or of a newer program, or it can't be written.
    """
    if settings.database.url:
        raise StoreError(NOT_OURS)
    check_file(backup)
    current = database_file(settings)
    temporary = current.with_name(f"{current.stem}-{os.urandom(8).hex()}.restoring")
    aside = current.with_name(time.strftime("cxr-node-replaced-%Y%m%dT%H%M%SZ.sqlite3", time.gmtime()))
    try:
        current.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        _copy(backup, temporary)
        existed = current.exists()
        for suffix in ("-shm", "-wal", ""):  # the log belongs to the file: under the new one it would be replayed into it
            with suppress(FileNotFoundError):
                current.with_name(current.name + suffix).rename(aside.with_name(aside.name + suffix))
        temporary.replace(current)
        _sync(current.parent)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{backup} could not be restored to {current}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return aside if existed else None


@contextmanager
def opened(path: Path) -> Iterator[Engine]:
    """A backup as a database that is only read.

    Raises:
        StoreError: it is no whole database of a node.
    """
    from sqlalchemy import create_engine  # the rest of this module needs none of it

    check_file(path)
    engine = create_engine(f"sqlite:///file:{quote(str(path.absolute()))}?mode=ro&uri=true", hide_parameters=True)
    try:
        yield engine
    finally:
        engine.dispose()


def check_file(path: Path) -> None:
    """See whether a file is a whole database that this program can use.

    Raises:
        StoreError: it is not.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            _judge(str(path), [str(row[0]) for row in connection.execute("PRAGMA quick_check(5)")])
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error as error:
        raise StoreError(f"{path} is not a complete database of a node: {error}") from error
    if found is None:
        raise StoreError(f"{path} is not a complete database of a node: it has no schema.")
    if found[0] > SCHEMA_REVISION:
        raise StoreError(f"{path}: {newer_schema(found[0])}")


def _copy(source: Path, target: Path) -> None:
    """SQLite's online backup: writers continue meanwhile, and the copy is of one moment."""
    with (
        closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as reading,
        closing(sqlite3.connect(target)) as writing,
    ):
        reading.backup(writing)
        writing.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
    _sync(target)


def _judge(name: str, found: list[str]) -> None:
    if found != ["ok"]:
        raise StoreError(
            f"The database {name} is damaged ({'; '.join(found)[:200]}): stop the node, `cxr-node restore` the newest backup, "
            "and check the disk."
        )


def _taken_at(path: Path) -> datetime | None:
    try:
        return datetime.strptime(path.name, _NAME).replace(tzinfo=UTC)
    except ValueError:
        return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
