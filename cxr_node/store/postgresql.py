"""Specifics of PostgreSQL: the connection, and the remedies for its errors.

All other SQL of the store is the same for both databases.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from cxr_node.errors import Note, StoreError

_POOL_SIZE, _MAX_OVERFLOW = 5, 15
"""Each connection is a process of the server: those that a moment needs wait for each other rather than pile up."""
_LOCK_TIMEOUT_S = 30
_CONNECT = {
    "connect_timeout": 10,
    # a server whose machine is gone says nothing: without these a statement would wait a quarter of an hour for it
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "client_encoding": "utf8",
    "application_name": "cxr-node",
}
"""Parameters of libpq; those that the URL names are left to it."""
_MIGRATION_LOCK = 0x63_78_72_2D_6E_6F_64_65
"""The letters of the program's name: what keeps roles on several machines from migrating at the same time."""

_GOING = ("08", "57P")
_DISK_FULL, _READ_ONLY, _NOT_ALLOWED = "53100", "25006", "42501"
"""SQLSTATEs (PostgreSQL's documentation, appendix A)."""


def connect(url: str) -> Engine:
    """An engine for a database of PostgreSQL; connects to nothing yet.

    Raises:
        SQLAlchemyError, ImportError: the URL names another driver, or psycopg is not installed.
        ValueError: it can't be taken apart.
    """
    parts = make_url(url)
    if "@" in (parts.host or ""):  # the end of a password
        raise ValueError("the host holds an @")
    engine = create_engine(
        url,
        pool_size=_POOL_SIZE,
        max_overflow=_MAX_OVERFLOW,
        pool_pre_ping=True,  # a connection that broke while it was not in use is replaced
        isolation_level="READ COMMITTED",
        hide_parameters=True,  # errors end up in logs, and parameters hold patient IDs
        connect_args={name: value for name, value in _CONNECT.items() if name not in parts.query},
    )
    if engine.dialect.driver != "psycopg":
        raise ImportError(f"the driver {engine.dialect.driver} is not psycopg")
    _tune(engine)
    return engine


def check_encoding(engine: Engine) -> None:
    """See whether the database can hold every text.

    Raises:
        StoreError: it can't.
    """
    with engine.connect() as connection:
        encoding = connection.execute(text("SELECT current_setting('server_encoding')")).scalar()
    if encoding != "UTF8":
        raise StoreError(
            f"The database {in_print(engine)} is encoded as {encoding}, which can't hold every patient ID: make one with "
            "`createdb --encoding UTF8 --template template0`."
        )


def lock_for_migration(connection: Connection) -> None:
    """Until the end of the transaction nobody else migrates, on whatever machine."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})


def loses_at_power_cut(engine: Engine) -> bool:
    """Whether the server was told not to flush what it has committed."""
    with engine.connect() as connection:
        return connection.execute(text("SELECT current_setting('fsync')")).scalar() == "off"


def in_print(engine: Engine) -> str:
    """The database's URL without what may be secret in it."""
    return engine.url.set(query={}).render_as_string(hide_password=True)


def server_error_text(error: SQLAlchemyError) -> str:
    """What the server, or the way to it, said, and what to do; without rows, which the server quotes after the first line."""
    cause = getattr(error, "orig", None)
    state = getattr(cause, "sqlstate", None)
    said = getattr(getattr(cause, "diag", None), "message_primary", None) or str(cause or error).partition("\n")[0]
    if state is None and isinstance(error, OperationalError):
        cure = (
            "Is the server running, does it listen there, does it know the user, the password and the database that "
            "database.url names, and does pg_hba.conf let them in?"
        )
    else:
        cure = {
            _DISK_FULL: "The server's disk is full: free space there.",
            _READ_ONLY: "This server is read-only, like a standby: name the primary in database.url.",
            _NOT_ALLOWED: "Make the user the owner of the database (ALTER DATABASE … OWNER TO …), which is for the node alone.",
        }.get(state or "", "")
    return f"{said.rstrip('.?')}. {cure}".rstrip()


def is_full(error: SQLAlchemyError) -> bool:
    """Whether the server's disk has no room."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) == _DISK_FULL


def _is_away(error: SQLAlchemyError) -> bool:
    """Whether the server can't be reached, or goes just now: what it then says quotes no row."""
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    return isinstance(error, OperationalError) and (state is None or state.startswith(_GOING))


def _tune(engine: Engine) -> None:
    from psycopg.types.string import StrDumperUnknown

    class Storable(StrDumperUnknown):
        """PostgreSQL holds neither NUL nor half a surrogate pair, which a damaged header may: they are left out."""

        def dump(self, obj: str) -> bytes:
            return obj.replace("\0", "").encode("utf-8", "replace")

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        connection.adapters.register_dumper(str, Storable)
        for name, unset, value in (
            ("synchronous_commit", "off", "on"),  # what is acknowledged survives a power cut
            ("lock_timeout", "0", f"{_LOCK_TIMEOUT_S}s"),
        ):
            connection.execute(
                "SELECT set_config(%s, %s, false) WHERE current_setting(%s) = %s", (name, value, name, unset)
            ).close()
        connection.commit()

    @event.listens_for(engine, "handle_error")
    def on_error(context: ExceptionContext) -> None:
        if context.sqlalchemy_exception is not None and _is_away(context.sqlalchemy_exception):
            context.sqlalchemy_exception.add_note(
                Note(f"The database {in_print(engine)} is away: {server_error_text(context.sqlalchemy_exception)}")
            )
