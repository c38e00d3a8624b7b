"""The owner of a claim, whether its process lives, and the clock of leases.

On SQLite, leases use the monotonic clock of the machine, which counts from its start and stops while it sleeps; a lease stores
the start that it counts from. On PostgreSQL, all machines use the clock of the server. That clock can be set: after a step
forward, nothing counts as lapsed for the length of a lease, so that live processes can renew theirs; after a step back, a lease
is limited to that length.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import ColumnElement, Connection, Engine, Table, and_, or_, select, text, update

from cxr_node.records import DeliveryState, JobState
from cxr_node.settings import Settings
from cxr_node.store import lock
from cxr_node.store.database import write
from cxr_node.store.schema import deliveries, jobs

DELIVERY_S = 60.0
"""How long the lease of a delivery lasts; that of a job, as the settings say."""
_STEP_S = 0.5
"""A server's clock that has gained so much more than ours was set; ours, and the way there, are no better than that."""
_ENDED = 0.0
"""In `lease_until`: ended by somebody who knew, whatever the clock says."""

_names: dict[tuple[int, Path], str] = {}
_naming = threading.Lock()


class LeaseClock:
    """What leases of one database are measured by, as one process sees it.

    Args:
        steady: seconds that no one can set, the same for all processes of this machine.
        start: names the machine's start, from which `steady` counts.
        server: asks the database's server for its seconds.
    """

    def __init__(
        self,
        steady: Callable[[], float] = time.monotonic,
        start: str | None = None,
        server: Callable[[Connection], float] | None = None,
    ) -> None:
        self._steady = steady
        self._server = server or _ask_server
        self._start = _start_of_machine() if start is None else start
        self._lock = threading.Lock()
        self._seen: tuple[float, float] | None = None
        self._distrusted_at = float("-inf")

    def now(self, connection: Connection) -> float:
        """Seconds now: of the database's server if it has one."""
        return self._server_now(connection) if _has_server(connection) else self._steady()

    def start(self, connection: Connection) -> str:
        """The machine's start that a lease counts from; empty for a server's clock."""
        return "" if _has_server(connection) else self._start

    def is_trusted(self, connection: Connection, lease_s: float) -> bool:
        """Whether what seems to have lapsed has; `now` has just been asked."""
        return not _has_server(connection) or self._steady() - self._distrusted_at >= lease_s

    def _server_now(self, connection: Connection) -> float:
        before = self._steady()
        server_s = self._server(connection)
        after = self._steady()
        with self._lock:
            # a process that has just begun can't know what happened before
            if self._seen is None or server_s - self._seen[0] > after - self._seen[1] + _STEP_S:
                self._distrusted_at = after
            if self._seen is None or before >= self._seen[1]:
                self._seen = server_s, before
        return server_s


_clocks: WeakKeyDictionary[Engine, LeaseClock] = WeakKeyDictionary()


def clock_of(engine: Engine) -> LeaseClock:
    """The clock that leases in this database run on."""
    with _naming:
        return _clocks.setdefault(engine, LeaseClock())


def set_clock(engine: Engine, clock: LeaseClock) -> None:
    """Let leases in this database run on another clock: for tests."""
    with _naming:
        _clocks[engine] = clock


def owner_name(root: Path) -> str:
    """Name of this process in the leases of a data folder: random, and shown to be alive by `lock.register_process`.

    Raises:
        StoreError: the data folder can't be written.
    """
    key = (os.getpid(), root.absolute())  # a fork is another process
    with _naming:
        if key not in _names:
            _names[key] = lock.register_process(root)
        return _names[key]


def until(connection: Connection, lease_s: float) -> dict[str, Any]:
    """The columns of a lease that begins now, but for its owner."""
    clock = clock_of(connection.engine)
    return {"lease_until": clock.now(connection) + lease_s, "lease_start": clock.start(connection)}


def lapsed(connection: Connection, table: Table, lease_s: float) -> Any:
    """Which leases of a table have run out: a condition to be used at once.

    Args:
        connection: to the database.
        table: jobs or deliveries.
        lease_s: how long its leases last.
    """
    clock = clock_of(connection.engine)
    now = clock.now(connection)
    ended = is_ended(table)
    if not clock.is_trusted(connection, lease_s):
        return ended
    return or_(ended, and_(table.c.lease_until < now, table.c.lease_start == clock.start(connection)))


def is_ended(table: Table) -> ColumnElement[bool]:
    """Which leases were ended by somebody who knew that nobody holds them: a condition."""
    return table.c.lease_until <= _ENDED


def end_all(engine: Engine) -> None:
    """End every lease of a database that no process uses: one that was restored, whose leases are of long ago."""
    with write(engine) as connection:
        for table, state in ((jobs, JobState.RUNNING), (deliveries, DeliveryState.SENDING)):
            connection.execute(update(table).where(table.c.state == state).values(lease_until=_ENDED))


def release_dead(engine: Engine, settings: Settings) -> int:
    """End the leases of processes that died, so that nobody waits for them to lapse; how many owners.

    Also those that count from another start of the machine, unless their owner lives; and those that would last longer than
    leases do are cut: the clock was set back.
    """
    root = settings.node.data_dir
    ended = lock.ended_processes(root)  # before the leases are read: none of them takes another one
    gone: set[str] = set()
    clock = clock_of(engine)
    for table, state, lease_s in (
        (jobs, JobState.RUNNING, settings.inference.lease_s),
        (deliveries, DeliveryState.SENDING, DELIVERY_S),
    ):
        under_way = table.c.state == state
        with engine.connect() as connection:
            start = clock.start(connection)
            rows = connection.execute(select(table.c.lease_owner, table.c.lease_start).where(under_way).distinct()).all()
            latest = clock.now(connection) + lease_s
            too_long = and_(under_way, table.c.lease_until > latest)
            is_one_too_long = connection.execute(select(table.c.id).where(too_long).limit(1)).first() is not None
        dead = {row.lease_owner for row in rows if row.lease_owner in ended}
        dead |= {row.lease_owner for row in rows if row.lease_start != start and not lock.is_live(root, row.lease_owner)}
        if dead or is_one_too_long:
            with write(engine) as connection:
                connection.execute(update(table).where(under_way, table.c.lease_owner.in_(dead)).values(lease_until=_ENDED))
                connection.execute(update(table).where(too_long).values(lease_until=latest))
        gone |= dead
    lock.forget_processes(root, ended)
    return len(gone)


def _has_server(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql"


def _ask_server(connection: Connection) -> float:
    return float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())


def _start_of_machine() -> str:
    """Linux's random name of this start; empty elsewhere; there, a restarted machine limits leases that are too long."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
