"""Users of the web pages and their sessions. Passwords arrive as hashes; `web.passwords` makes and checks them."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, delete, func, insert, select, update

from cxr_node.errors import StoreError
from cxr_node.records import AuditEvent
from cxr_node.store.audit_log import audit
from cxr_node.store.database import write
from cxr_node.store.schema import users, web_sessions

ROLES = ("viewer", "operator", "auditor", "admin")
"""viewer (read only), operator (also changes the queue), auditor (reads the audit log), admin (everything)."""

_CLOCK_STEP_S = 300.0
"""A clock is set back by less in the course of its day."""
_SEEN_EVERY_S = 30.0
"""So often a session that is used writes down when."""


@dataclass(frozen=True)
class Session:
    """A session that is valid now."""

    name: str
    role: str
    csrf: str
    how: str


def hash_of(secret: str) -> str:
    """What is kept of a session's or an API token's secret, which has 256 random bits: SHA-256 needs no salt for those."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def add(engine: Engine, name: str, role: str, password_hash: str, by: str) -> None:
    """Add a user.

    Raises:
        StoreError: there is one of that name.
    """
    now = time.time()
    with write(engine) as connection:
        if _find(connection, name) is not None:
            raise StoreError(f"There is a user {name} already: `cxr-node user passwd` sets another password.")
        values = {"name": name, "role": role, "password_hash": password_hash, "created_at": now, "changed_at": now}
        connection.execute(insert(users).values(**values))
        audit.add(connection, AuditEvent("user-added", user=by[:64], detail=f"{name}, {role}"))


def listed(engine: Engine) -> list[dict[str, Any]]:
    """All users by name, without their passwords' hashes. Times are UTC seconds since the epoch."""
    seen = (
        select(web_sessions.c.name, func.max(web_sessions.c.seen_at).label("seen_at"))
        .where(web_sessions.c.how == "password")
        .group_by(web_sessions.c.name)
        .subquery()
    )
    query = (
        select(users.c.name, users.c.role, users.c.created_at, users.c.disabled_at, seen.c.seen_at)
        .outerjoin(seen, seen.c.name == users.c.name)
        .order_by(users.c.name)
    )
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def are_there(engine: Engine) -> bool:
    """Whether there is any user, disabled ones included."""
    with engine.connect() as connection:
        return connection.execute(select(users.c.id).limit(1)).first() is not None


def password_hash(engine: Engine, name: str) -> tuple[str, str] | None:
    """The hash of a user's password and their role; None: there is no such user, or they are disabled."""
    with engine.connect() as connection:
        row = connection.execute(
            select(users.c.password_hash, users.c.role).where(users.c.name == name, users.c.disabled_at.is_(None))
        ).first()
    return None if row is None else (row[0], row[1])


def rehash(engine: Engine, name: str, old_hash: str, new_hash: str) -> None:
    """Keep a hash made with newer parameters, of the same password, if that is still the user's."""
    with write(engine) as connection:
        connection.execute(update(users).where(*_has_hash(name, old_hash)).values(password_hash=new_hash))


def set_password(engine: Engine, name: str, new_hash: str, by: str) -> None:
    """Set another password, and end the user's sessions.

    Raises:
        StoreError: there is no such user.
    """
    with write(engine) as connection:
        _change(connection, name, password_hash=new_hash, changed_at=time.time())
        audit.add(connection, AuditEvent("user-password-set", user=by[:64], detail=name))


def set_disabled(engine: Engine, name: str, by: str, *, disabled: bool = True) -> None:
    """Let a user in no more and end their sessions, or let them in again.

    Raises:
        StoreError: there is no such user.
    """
    with write(engine) as connection:
        _change(connection, name, disabled_at=time.time() if disabled else None)
        audit.add(connection, AuditEvent("user-disabled" if disabled else "user-enabled", user=by[:64], detail=name))


def set_role(engine: Engine, name: str, role: str, by: str) -> None:
    """Give a user another role; their sessions have it at once.

    Raises:
        StoreError: there is no such user.
    """
    with write(engine) as connection:
        if not connection.execute(update(users).where(users.c.name == name).values(role=role)).rowcount:
            raise _unknown(name)
        audit.add(connection, AuditEvent("user-role-set", user=by[:64], detail=f"{name}, {role}"))


def begin_session(
    engine: Engine, name: str, role: str, how: str, longest_s: float, instead_of: str = "", checked_hash: str = ""
) -> str:
    """Begin a session under a new secret, which it gives; ends the one that the browser had, so that none can be planted.

    Args:
        engine: the database.
        name: of the user.
        role: of the user; a user of the database has the role that the database says, whatever it is here.
        how: "password", "oidc" or "link".
        longest_s: when it ends at the latest.
        instead_of: the secret that the browser had, if any.
        checked_hash: of the password that was right: log-ins wait for their check, and it may have been changed meanwhile.

    Raises:
        StoreError: it was.
    """
    secret, now = secrets.token_urlsafe(32), time.time()
    values = {
        **{"token_hash": hash_of(secret), "csrf": secrets.token_urlsafe(32), "name": name, "role": role, "how": how},
        **{"created_at": now, "seen_at": now, "ends_at": now + longest_s},
    }
    with write(engine) as connection:
        if checked_hash and not connection.execute(select(users.c.id).where(*_has_hash(name, checked_hash))).first():
            raise StoreError("The password was changed a moment ago: sign in with the new one.")
        connection.execute(delete(web_sessions).where(web_sessions.c.ends_at < now - 86400))
        if instead_of:
            connection.execute(delete(web_sessions).where(web_sessions.c.token_hash == hash_of(instead_of)))
        connection.execute(insert(web_sessions).values(**values))
    return secret


def session(engine: Engine, secret: str, idle_s: float, *, is_use: bool = True) -> Session | None:
    """The session of this secret, if it is valid; a use puts off its idle time-out."""
    now = time.time()
    query = (
        select(web_sessions, users.c.role.label("role_now"), users.c.disabled_at, users.c.id.label("user_id"))
        .outerjoin(users, users.c.name == web_sessions.c.name)
        .where(web_sessions.c.token_hash == hash_of(secret))
    )
    with engine.connect() as connection:
        row = connection.execute(query).mappings().first()
    if row is None or now > row["ends_at"] or now > row["seen_at"] + idle_s:
        return None
    if row["seen_at"] > now + _CLOCK_STEP_S:  # from before the clock was set back: it would outlast its time
        return None
    of_database = row["how"] == "password"
    if of_database and (row["user_id"] is None or row["disabled_at"] is not None):
        return None
    if is_use and now > row["seen_at"] + _SEEN_EVERY_S:
        with write(engine) as connection:
            connection.execute(update(web_sessions).where(web_sessions.c.id == row["id"]).values(seen_at=now))
    return Session(row["name"], row["role_now"] if of_database else row["role"], row["csrf"], row["how"])


def end_session(engine: Engine, secret: str) -> None:
    """End a session."""
    with write(engine) as connection:
        connection.execute(delete(web_sessions).where(web_sessions.c.token_hash == hash_of(secret)))


def end_link_sessions(engine: Engine) -> None:
    """End what was begun by one-time links: once there are users, these sign in."""
    with write(engine) as connection:
        connection.execute(delete(web_sessions).where(web_sessions.c.how == "link"))


def _has_hash(name: str, password_hash: str) -> tuple[Any, ...]:
    return users.c.name == name, users.c.password_hash == password_hash, users.c.disabled_at.is_(None)


def _find(connection: Connection, name: str) -> int | None:
    return connection.execute(select(users.c.id).where(users.c.name == name)).scalar()


def _change(connection: Connection, name: str, **values: Any) -> None:
    if not connection.execute(update(users).where(users.c.name == name).values(**values)).rowcount:
        raise _unknown(name)
    of_password = (web_sessions.c.name == name) & (web_sessions.c.how == "password")
    connection.execute(delete(web_sessions).where(of_password))


def _unknown(name: str) -> StoreError:
    return StoreError(f"There is no user {name}; `cxr-node user list` shows those there are.")
