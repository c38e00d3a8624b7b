"""Positions of the audit record repositories: the audit log is its own spool, and only a position in the chain is stored."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Connection, Engine, func, insert, select, update

from cxr_node.store.database import write
from cxr_node.store.schema import audit, audit_chain, audit_repositories


def position(engine: Engine, name: str) -> int:
    """The last link that a repository has. A new one begins with the newest start of the node: what was before, it isn't sent."""
    query = select(audit_repositories.c.seq).where(audit_repositories.c.name == name)
    with engine.connect() as connection:
        found = connection.execute(query).scalar()
    if found is not None:
        return int(found)
    with write(engine) as connection:
        found = connection.execute(query).scalar()
        if found is None:
            found = _start(connection)
            connection.execute(insert(audit_repositories).values(name=name, seq=found, sent=0, error=""))
    return int(found)


def note_sent(engine: Engine, name: str, seq: int, count: int) -> None:
    """A repository has taken `count` messages, up to the one of this link."""
    with write(engine) as connection:
        connection.execute(
            update(audit_repositories)
            .where(audit_repositories.c.name == name, audit_repositories.c.seq < seq)
            .values(seq=seq, sent=audit_repositories.c.sent + count, sent_at=time.time(), error="", error_at=None)
        )


def note_trouble(engine: Engine, name: str, reason: str) -> None:
    """A repository could not be sent to."""
    with write(engine) as connection:
        connection.execute(
            update(audit_repositories).where(audit_repositories.c.name == name).values(error=reason, error_at=time.time())
        )


def positions(engine: Engine) -> dict[str, int]:
    """The last link that each repository has, of all that were ever sent to."""
    with engine.connect() as connection:
        rows = connection.execute(select(audit_repositories.c.name, audit_repositories.c.seq)).all()
    return {row.name: row.seq for row in rows}


def _start(connection: Connection) -> int:
    """The link before the newest start of the node; the newest link if that isn't chained, or there was none."""
    started = select(func.max(audit.c.id)).where(audit.c.event == "node-started").scalar_subquery()
    seq: Any = connection.execute(select(audit_chain.c.seq).where(audit_chain.c.audit_id == started)).scalar()
    if seq is not None:
        return int(seq) - 1
    return int(connection.execute(select(func.max(audit_chain.c.seq))).scalar() or 0)
