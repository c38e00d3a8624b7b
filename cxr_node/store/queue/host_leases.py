"""Leases that let one of several hosts on a shared database do the work that needs only one: housekeeping, sealing the audit log.

The holder renews its lease by asking for it. When a lease has lapsed, another host takes it. Two holders at once, as after a
network partition, do no harm: every step of such work is an update guarded by the row that it changes. On SQLite there is only
one host, which holds every lease.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from sqlalchemy import Engine, insert, or_, update
from sqlalchemy.exc import IntegrityError

from cxr_node.store.database import write
from cxr_node.store.queue import leases
from cxr_node.store.schema import host_turns

HOUSEKEEPING, AUDIT = "housekeeping", "audit"
"""Names of leases. Each audit record repository has one more, `audit to NAME`."""

LEASE_S = 60.0
_RENEW_AFTER_S = LEASE_S / 3
_RETRY_AFTER_S = 5.0


class HostLeases:
    """The leases of one process.

    Args:
        engine: the database.
        owner: name of this process in leases; see `leases.owner_name`.
        steady: a clock that nobody can set, in seconds.
    """

    def __init__(self, engine: Engine, owner: str, steady: Callable[[], float] = time.monotonic) -> None:
        self._engine, self._owner, self._steady = engine, owner, steady
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, bool]] = {}

    def holds(self, name: str) -> bool:
        """Whether this process holds a lease; takes a free one. Queries the database every few seconds at most."""
        if self._engine.dialect.name != "postgresql":
            return True
        with self._lock:
            checked_at, held = self._known.get(name, (float("-inf"), False))
            now = self._steady()
            if now - checked_at < (_RENEW_AFTER_S if held else _RETRY_AFTER_S):
                return held
            self._known.pop(name, None)  # if the query fails, nothing is known
            taken = _take(self._engine, name, self._owner)
            self._known[name] = now, taken
            return taken

    def release_all(self) -> None:
        """Release all leases of this process, so that another host can take them at once."""
        if self._engine.dialect.name != "postgresql":
            return
        with self._lock, write(self._engine) as connection:
            self._known.clear()
            connection.execute(update(host_turns).where(host_turns.c.lease_owner == self._owner).values(lease_until=0))


def _take(engine: Engine, name: str, owner: str) -> bool:
    """Take or renew a lease; False if another process holds it."""
    try:
        with write(engine) as connection:
            free = or_(host_turns.c.lease_owner == owner, leases.lapsed(connection, host_turns, LEASE_S))
            lease = {"lease_owner": owner, **leases.until(connection, LEASE_S)}
            if connection.execute(update(host_turns).where(host_turns.c.name == name, free).values(**lease)).rowcount:
                return True
            if connection.execute(host_turns.select().where(host_turns.c.name == name)).first() is not None:
                return False
            connection.execute(insert(host_turns).values(name=name, **lease))
            return True
    except IntegrityError:  # another host inserted the row first
        return False
