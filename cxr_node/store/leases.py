"""Who holds a claim, and whether that process still lives."""

from __future__ import annotations

import os
import socket
import time

import psutil
from sqlalchemy import Engine, and_, or_, select, update

from cxr_node.records import DeliveryState, JobState
from cxr_node.store.database import write
from cxr_node.store.schema import deliveries, jobs

_LONGEST_LEASE_S = 86400.0


def owner_name() -> str:
    """Name of this process in a lease: host, process id and start time, so that a reused id isn't mistaken for it."""
    return f"{socket.gethostname()[:32]}/{os.getpid()}/{_started(os.getpid())}"


def is_gone(owner: str) -> bool:
    """Whether the owner of a lease ran on this host and no longer does; of other hosts nothing is known."""
    host, _, rest = owner.partition("/")
    pid, _, started = rest.partition("/")
    if host != socket.gethostname()[:32] or not pid.isdigit():
        return False
    try:
        return str(_started(int(pid))) != started
    except psutil.NoSuchProcess:
        return True


def release_dead(engine: Engine) -> int:
    """End the leases of processes of this host that died, so that nobody waits for them to lapse; how many owners.

    Also those that end so late that a clock must have been ahead when they were written.
    """
    now = time.time()
    gone: set[str] = set()
    for table, state in ((jobs, JobState.RUNNING), (deliveries, DeliveryState.SENDING)):
        with engine.connect() as connection:
            owners = connection.execute(select(table.c.lease_owner).where(table.c.state == state).distinct()).scalars().all()
        dead = [owner for owner in owners if is_gone(owner)]
        stale = and_(table.c.state == state, or_(table.c.lease_owner.in_(dead), table.c.lease_until > now + _LONGEST_LEASE_S))
        with engine.connect() as connection:
            if connection.execute(select(table.c.id).where(stale).limit(1)).first() is None:
                continue
        with write(engine) as connection:
            connection.execute(update(table).where(stale).values(lease_until=now - 1))
        gone.update(dead)
    return len(gone)


def _started(pid: int) -> int:
    """Hundredths of a second from the machine's start to the process's: setting the clock doesn't change them."""
    return round((psutil.Process(pid).create_time() - psutil.boot_time()) * 100)
