"""Opens the database that the roles meet in: engine, SQLite's pragmas, migrations; `postgresql` has what that one needs."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from cxr_node.errors import StoreError
from cxr_node.records import DataFolder
from cxr_node.settings import Settings
from cxr_node.store import home, postgresql, schema_check
from cxr_node.store.backup import back_up, database_file
from cxr_node.store.glance import cure_of, no_node
from cxr_node.store.instances import make_folders
from cxr_node.store.prepared import drive
from cxr_node.store.revision import SCHEMA_REVISION

DatabaseTrouble = SQLAlchemyError
"""What reading and writing raise when the database is locked, full, or away; for those who catch it outside the store."""

_BUSY_TIMEOUT_S = 30


def open_database(settings: Settings) -> Engine:
    """Make the data folder, connect, and bring the schema up to date.

    Raises:
        StoreError: the folder can't be written, the database can't be reached, it has not the schema that this program
            works with, or the program's migrations are missing.
    """
    schema_check.check_shipped()
    folders = DataFolder(settings.node.data_dir)
    make_folders(folders)
    engine = _connect(settings)
    with _in_words(engine):
        if _revision_of(engine) != SCHEMA_REVISION:
            with _one_at_a_time(folders.root):
                _migrate(engine, settings)
        with engine.connect() as connection:
            schema_check.check_tables(connection)
        if settings.database.url and not home.is_home(engine, folders.root):
            with _one_at_a_time(folders.root):
                home.settle(engine, folders.root)
    return engine


def look_into_database(settings: Settings) -> Engine:
    """Connect to the database of a node that there is: for commands that look, and must make and migrate nothing.

    Raises:
        StoreError: there is none, it can't be reached, or a program of another version has to open it.
    """
    if not settings.database.url and not database_file(settings).is_file():
        raise StoreError(no_node(settings))
    engine = _connect(settings)
    with _in_words(engine):
        current = _revision_of(engine)
        if current is None:
            raise StoreError("There is no node in the database that database.url names: start it once with `cxr-node serve`.")
        if current != SCHEMA_REVISION:
            if current > SCHEMA_REVISION or not current.isdecimal():
                raise schema_check.unknown(current, engine)
            raise StoreError("The database is one of an older version: start the node once, which brings it up to date.")
        with engine.connect() as connection:
            schema_check.check_tables(connection)
        if settings.database.url:
            home.check(engine, settings.node.data_dir)
    return engine


@contextmanager
def asking(engine: Engine) -> Iterator[Callable[..., list[tuple[Any, ...]]]]:
    """Asks in plain SQL: parameters are written `:name`, and given by name."""
    with engine.connect() as connection:
        yield lambda sql, **values: [tuple(row) for row in connection.execute(text(sql), values)]


def why_commits_may_be_lost(engine: Engine) -> str:
    """Why a power cut could take what was acknowledged, for a person; empty if it couldn't."""
    if engine.dialect.name == "postgresql" and postgresql.loses_at_power_cut(engine):
        return "The PostgreSQL server runs with fsync = off: a power cut may take what the node has acknowledged. Turn it on."
    return ""


def is_full(error: BaseException) -> bool:
    """Whether a database error says that the disk has no room."""
    return isinstance(error, SQLAlchemyError) and ("disk is full" in str(error) or postgresql.is_full(error))


def _connect(settings: Settings) -> Engine:
    url = settings.database_url
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
        reason = "its password or its port can't be made out" if isinstance(error, ValueError) else error
        raise StoreError(
            f"database.url can't be used ({reason}): write it as postgresql+psycopg://USER:PASSWORD@HOST/NAME, where @ : / and % "
            "in the password are written as %40 %3A %2F and %25, "
            "with psycopg installed (the extra `scale`), or leave it empty for SQLite in the data folder."
        ) from (None if isinstance(error, ValueError) else error)
    _tune_sqlite(engine)
    return engine


@contextmanager
def _in_words(engine: Engine) -> Iterator[None]:
    try:
        yield
    except StoreError:
        engine.dispose()
        raise
    except SQLAlchemyError as error:
        engine.dispose()
        if engine.dialect.name == "postgresql":
            raise StoreError(f"The database {postgresql.in_print(engine)} can't be used: {postgresql.in_words(error)}") from error
        said = str(getattr(error, "orig", None) or error).partition("\n")[0].rstrip(".")
        raise StoreError(f"The database {schema_check.name_of(engine)} can't be used: {said}.{cure_of(said)}") from error


@contextmanager
def write(engine: Engine) -> Iterator[Connection]:
    """A transaction that will write: on SQLite it takes the write lock at once, so that no reader has to upgrade."""
    with engine.connect() as connection:  # leaving by an exception rolls back
        connection.begin()
        if engine.dialect.name == "sqlite":
            drive(connection, "BEGIN IMMEDIATE", ())
        yield connection
        connection.commit()


def _tune_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver starts no transaction of its own: `write` does
        for pragma in (
            f"busy_timeout={_BUSY_TIMEOUT_S * 1000}",
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
            postgresql.wait_for_turn_to_migrate(connection)
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
        file = (root / ".migration.lock").open("w")
    except OSError as error:
        raise StoreError(f"{root / '.migration.lock'} can't be written ({error.strerror}): change its owner.") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
