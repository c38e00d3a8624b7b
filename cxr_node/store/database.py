"""Opens the shared database of the roles: engine, SQLite pragmas, migrations. `postgresql` has the specifics of PostgreSQL."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as DatabaseTimeoutError

from cxr_node.errors import StoreError
from cxr_node.records import DataFolder
from cxr_node.security.nofollow import open_file, refuse_links
from cxr_node.settings import Settings
from cxr_node.store import postgresql, schema_check
from cxr_node.store.backup import back_up, database_file
from cxr_node.store.files import bucket_id, data_folder_id
from cxr_node.store.files.instances import make_folders
from cxr_node.store.prepared import drive
from cxr_node.store.revision import SCHEMA_REVISION, cure_of, no_node
from cxr_node.store.write_lock import WriteLock

DatabaseTrouble = SQLAlchemyError
"""What reading and writing raise when the database is locked, full, or away; for those who catch it outside the store."""

_LONGEST_WAIT_S = 30.0

_write_locks: WeakKeyDictionary[Engine, WriteLock] = WeakKeyDictionary()
"""Of engines that `open_database` gave, for SQLite."""


def open_database(settings: Settings, *, longest_wait_s: float = _LONGEST_WAIT_S) -> Engine:
    """Make the data folder, connect, and bring the schema up to date.

    Args:
        settings: the settings tree.
        longest_wait_s: how long to wait for others who write to an SQLite database.

    Raises:
        StoreError: the folder can't be written, the database can't be reached, it has not the schema that this program
            works with, or the program's migrations are missing.
    """
    schema_check.check_shipped()
    folders = DataFolder(settings.node.data_dir)
    make_folders(folders)
    engine = _connect(settings, longest_wait_s)
    with _store_errors(engine):
        if engine.dialect.name == "sqlite":
            _write_locks[engine] = _write_lock_at(database_file(settings), longest_wait_s)
        if _revision_of(engine) != SCHEMA_REVISION:
            with _one_at_a_time(folders.root):
                _migrate(engine, settings)
        with engine.connect() as connection:
            schema_check.check_tables(connection)
        if settings.storage.url and not bucket_id.is_known(engine, settings):
            with _one_at_a_time(folders.root):
                bucket_id.settle(engine, settings)
        elif settings.database.url and not settings.storage.url and not data_folder_id.belongs_to(engine, folders.root):
            with _one_at_a_time(folders.root):
                data_folder_id.settle(engine, folders.root)
    return engine


def inspect_database(settings: Settings) -> Engine:
    """Connect to the database of a node that there is: for commands that look, and must make and migrate nothing.

    Raises:
        StoreError: there is none, it can't be reached, or a program of another version has to open it.
    """
    if not settings.database.url and not database_file(settings).is_file():
        raise StoreError(no_node(settings))
    engine = _connect(settings)
    with _store_errors(engine):
        current = _revision_of(engine)
        if current is None:
            raise StoreError("There is no node in the database that database.url names: start it once with `cxr-node serve`.")
        if current != SCHEMA_REVISION:
            if current > SCHEMA_REVISION or not current.isdecimal():
                raise schema_check.unknown(current, engine)
            raise StoreError("The database is of an older version: start the node once, which upgrades it.")
        with engine.connect() as connection:
            schema_check.check_tables(connection)
        if settings.database.url and not settings.storage.url:
            data_folder_id.check(engine, settings.node.data_dir)
    return engine


@contextmanager
def querying(engine: Engine) -> Iterator[Callable[..., list[tuple[Any, ...]]]]:
    """A function that runs plain SQL, with parameters written `:name` and given by name, and returns the rows."""
    with engine.connect() as connection:
        yield lambda sql, **values: [tuple(row) for row in connection.execute(text(sql), values)]


def why_commits_may_be_lost(engine: Engine) -> str:
    """Why a power cut could lose acknowledged data; empty if it could not."""
    if engine.dialect.name == "postgresql" and postgresql.loses_at_power_cut(engine):
        return "The PostgreSQL server runs with fsync = off: a power cut may take what the node has acknowledged. Turn it on."
    return ""


def is_full(error: BaseException) -> bool:
    """Whether a database error says that the disk has no room."""
    return isinstance(error, SQLAlchemyError) and ("disk is full" in str(error) or postgresql.is_full(error))


def is_in_trouble(error: BaseException) -> bool:
    """Whether an error says that the database is locked, full or away, rather than that it doesn't take what it was given."""
    return isinstance(error, OperationalError | DatabaseTimeoutError)


def nothing_was_written(error: BaseException) -> bool:
    """Whether an error of `write` says that its transaction never began: others kept the database for too long."""
    is_busy = isinstance(error, OperationalError) and "database is locked" in str(error)
    return is_busy or isinstance(error, DatabaseTimeoutError | TimeoutError)


def trouble_in_words(error: BaseException) -> str:
    """What a person who gave a command reads of a database that is locked, full or away; empty: the error says something else."""
    if not isinstance(error, SQLAlchemyError) or not is_in_trouble(error):
        return ""
    if nothing_was_written(error):
        return (
            "The database was locked for too long, and the command has given up. Run it again; if this continues, look for a "
            "program that keeps the database open, such as a running copy or an sqlite3 shell."
        )
    if type(getattr(error, "orig", None)).__module__.startswith("psycopg"):
        return f"The database can't be used: {postgresql.server_error_text(error)}"
    return f"The database can't be used: {_sqlite_error_text(error)}"


def _sqlite_error_text(error: SQLAlchemyError) -> str:
    """What SQLite said, without the statement, and what to do about it."""
    said = str(getattr(error, "orig", None) or error).partition("\n")[0].rstrip(".")
    return f"{said}.{cure_of(said)}"


def _write_lock_at(file: Path, longest_wait_s: float) -> WriteLock:
    try:
        return WriteLock(file, longest_wait_s)
    except OSError as error:
        raise StoreError(
            f"Files beside the database {file} can't be made ({error.strerror}): change the folder's owner, or free disk space."
        ) from error


def _connect(settings: Settings, longest_wait_s: float = _LONGEST_WAIT_S) -> Engine:
    url = settings.database_url
    if not settings.database.url:  # SQLite follows links
        file = database_file(settings)
        refuse_links(*(file.with_name(file.name + suffix) for suffix in ("", "-wal", "-shm", "-journal")))
    try:
        if make_url(url).get_backend_name() == "postgresql":
            return postgresql.connect(url)
        engine = create_engine(
            url,
            pool_size=5,
            max_overflow=100,
            hide_parameters=True,  # errors end up in logs, and parameters hold patient IDs
        )
        if engine.dialect.name != "sqlite":
            raise ImportError(f"{engine.dialect.name} is neither PostgreSQL nor SQLite")
    except (SQLAlchemyError, ImportError, ValueError) as error:
        # the first two don't quote the URL, which may hold a password; the last may, of a port that is no number
        reason = "its password or its port can't be parsed" if isinstance(error, ValueError) else error
        raise StoreError(
            f"database.url can't be used ({reason}): write it as postgresql+psycopg://USER:PASSWORD@HOST/NAME, where @ : / and % "
            "in the password are written as %40 %3A %2F and %25, "
            "with psycopg installed (the extra `scale`), or leave it empty for SQLite in the data folder."
        ) from (None if isinstance(error, ValueError) else error)
    _tune_sqlite(engine, longest_wait_s)
    return engine


@contextmanager
def _store_errors(engine: Engine) -> Iterator[None]:
    try:
        yield
    except StoreError:
        engine.dispose()
        raise
    except SQLAlchemyError as error:
        engine.dispose()
        if engine.dialect.name == "postgresql":
            raise StoreError(
                f"The database {postgresql.in_print(engine)} can't be used: {postgresql.server_error_text(error)}"
            ) from error
        raise StoreError(f"The database {schema_check.name_of(engine)} can't be used: {_sqlite_error_text(error)}") from error


@contextmanager
def write(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes. On SQLite it takes the fair lock, then SQLite's write lock at once: no reader has to upgrade."""
    lock = _write_locks.get(engine)
    with lock.held() if lock else nullcontext(), engine.connect() as connection:  # leaving by an exception rolls back
        connection.begin()
        if engine.dialect.name == "sqlite":
            drive(connection, "BEGIN IMMEDIATE", ())
        yield connection
        connection.commit()


def _tune_sqlite(engine: Engine, longest_wait_s: float) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver starts no transaction of its own: `write` does
        for pragma in (
            f"busy_timeout={longest_wait_s * 1000:.0f}",
            "journal_mode=WAL",
            "synchronous=FULL",  # what is acknowledged survives a power cut
            "foreign_keys=ON",
        ):
            connection.execute(f"PRAGMA {pragma}").close()


def _revision_of(engine: Engine) -> str | None:
    with engine.connect() as connection:
        return schema_check.revision_of(connection)


def _migrate(engine: Engine, settings: Settings) -> None:
    # imported here: only a first start or an upgrade pays for it
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(schema_check.migrations_folder()).replace("%", "%%"))
    current = _revision_of(engine)
    try:
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions("base", SCHEMA_REVISION)}
    except (CommandError, KeyError) as error:  # a link of the chain is missing
        raise schema_check.incomplete() from error
    if current is not None and current not in known:
        raise schema_check.unknown(current, engine)
    # as it was before the upgrade
    copy = back_up(settings) if current is not None and current != SCHEMA_REVISION else None
    if current is None and engine.dialect.name == "postgresql":
        postgresql.check_encoding(engine)
    with write(engine) as connection:
        if engine.dialect.name == "postgresql":
            postgresql.lock_for_migration(connection)
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, SCHEMA_REVISION)
        except SQLAlchemyError as error:
            if copy is not None:  # nothing was changed, and the newest backup is one to go back to
                copy.unlink(missing_ok=True)
            if told := schema_check.unlike(error, current or "none", engine):
                raise told from error
            raise


@contextmanager
def _one_at_a_time(root: Path) -> Iterator[None]:
    """Roles that start together migrate one after the other."""
    try:
        file = os.fdopen(open_file(root / ".migration.lock", os.O_WRONLY | os.O_CREAT), "w")
    except OSError as error:
        raise StoreError(f"{root / '.migration.lock'} can't be written ({error.strerror}): change its owner.") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
