"""API tokens: shown once when created, stored as hashes."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, insert, select, update

from cxr_node.errors import StoreError
from cxr_node.records import AuditEvent
from cxr_node.store.accounts.users import hash_of
from cxr_node.store.audit_log import audit
from cxr_node.store.database import write
from cxr_node.store.schema import api_tokens

PREFIX = "cxr_"
"""By which scanners for leaked secrets may know one."""
_USED_EVERY_S = 60.0


@dataclass(frozen=True)
class IssuedToken:
    """A new token; `secret` is shown this once."""

    id: int
    secret: str
    expires_at: float


def create(engine: Engine, name: str, role: str, days: float, by: str) -> IssuedToken:
    """Create a token that is valid for this many days."""
    secret, now = PREFIX + secrets.token_urlsafe(32), time.time()
    values = {"name": name, "token_hash": hash_of(secret), "role": role, "created_by": by, "created_at": now}
    with write(engine) as connection:
        made = connection.execute(insert(api_tokens).values(**values, expires_at=now + days * 86400)).inserted_primary_key
        assert made is not None
        audit.add(connection, AuditEvent("token-created", user=by[:64], detail=f"token {made[0]}, {name}, {role}, {days:g} days"))
    return IssuedToken(int(made[0]), secret, now + days * 86400)


def listed(engine: Engine) -> list[dict[str, Any]]:
    """All tokens without their hashes, oldest first. Times are UTC seconds since the epoch."""
    columns = [column for column in api_tokens.columns if column.name != "token_hash"]
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(select(*columns).order_by(api_tokens.c.id)).mappings()]


def revoke(engine: Engine, number: int, by: str) -> None:
    """Make a token invalid.

    Raises:
        StoreError: there is no such token, or it was revoked before.
    """
    is_it = (api_tokens.c.id == number) & api_tokens.c.revoked_at.is_(None)
    with write(engine) as connection:
        if not connection.execute(update(api_tokens).where(is_it).values(revoked_at=time.time())).rowcount:
            raise StoreError(f"There is no token {number} that is valid; `cxr-node token list` shows those there are.")
        audit.add(connection, AuditEvent("token-revoked", user=by[:64], detail=f"token {number}"))


def find(engine: Engine, secret: str) -> tuple[str, str] | None:
    """The name and the role of a valid token; None: it isn't one."""
    now = time.time()
    with engine.connect() as connection:
        row = connection.execute(select(api_tokens).where(api_tokens.c.token_hash == hash_of(secret))).mappings().first()
    if row is None or row["revoked_at"] is not None or row["expires_at"] < now:
        return None
    if now > (row["used_at"] or 0) + _USED_EVERY_S:
        with write(engine) as connection:
            connection.execute(update(api_tokens).where(api_tokens.c.id == row["id"]).values(used_at=now))
    return row["name"], row["role"]
