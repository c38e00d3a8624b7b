"""The spool: received instances on this host's disk, until the role `upload` has put them into the bucket.

It exists for networks that are slower than the modalities (`storage.spool`). While only the spool has a blob, the instance's row
names the spool. Once the bucket has the blob, a guarded update clears that name, and then the file is deleted. A blob is
therefore always where its row says; for a moment, or after a crash, there can be a second copy in the other place.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass

from sqlalchemy import Engine, insert, select, update

from cxr_node.store.database import write
from cxr_node.store.schema import instances, spools


@dataclass(frozen=True)
class Waiting:
    """An instance that only the spool has."""

    key: str
    size_bytes: int
    sop_instance_uid: str


def waiting(engine: Engine, spool: str, limit: int) -> list[Waiting]:
    """The instances that a spool still has to upload, oldest first."""
    query = (
        select(instances.c.path, instances.c.size_bytes, instances.c.sop_instance_uid)
        .where(instances.c.spool == spool, instances.c.removed_at.is_(None))
        .order_by(instances.c.id)
        .limit(limit)
    )
    with engine.connect() as connection:
        return [Waiting(*row) for row in connection.execute(query)]


def note_uploaded(engine: Engine, key: str, spool: str) -> bool:
    """Record that the bucket has a blob; False: the row no longer names this spool."""
    mine = (instances.c.path == key, instances.c.spool == spool, instances.c.removed_at.is_(None))
    with write(engine) as connection:
        return bool(connection.execute(update(instances).where(*mine).values(spool="")).rowcount)


def is_owned(engine: Engine, key: str) -> bool | None:
    """Whether the row says that the bucket has the blob; None: there is no such row, or retention removed the instance."""
    query = select(instances.c.spool).where(instances.c.path == key, instances.c.removed_at.is_(None))
    with engine.connect() as connection:
        found = connection.execute(query).scalar()
    return None if found is None else found == ""


def given_up(engine: Engine, spool: str) -> list[str]:
    """Keys of the blobs in a spool that retention, on any host, has removed."""
    query = select(instances.c.path).where(instances.c.spool == spool, instances.c.removed_at.is_not(None))
    with engine.connect() as connection:
        return list(connection.execute(query).scalars())


def forget(engine: Engine, key: str, spool: str) -> None:
    """Record that a blob that retention removed is no longer in the spool."""
    mine = (instances.c.path == key, instances.c.spool == spool, instances.c.removed_at.is_not(None))
    with write(engine) as connection:
        connection.execute(update(instances).where(*mine).values(spool=""))


def note_seen(engine: Engine, spool: str) -> None:
    """Record the host of a spool and that its upload role is running."""
    values = {"host": socket.gethostname()[:255], "seen_at": time.time()}
    with write(engine) as connection:
        if not connection.execute(update(spools).where(spools.c.name == spool).values(**values)).rowcount:
            connection.execute(insert(spools).values(name=spool, **values))
