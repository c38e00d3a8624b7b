"""Fair queueing of jobs: each sender's address gets its share of the worker, however many images it has sent.

Every query repeats the condition of a partial index word for word (`ix_jobs_never_tried`, `ix_jobs_tried`), so that a claim takes
as long with a hundred thousand waiting jobs as with ten.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from typing import Any

from sqlalchemy import ColumnElement, Connection, select, text, true

from cxr_node.records import JobState
from cxr_node.store.schema import jobs

_MOST_ADDRESSES = 1000
"""With jobs of one priority. More than these have no shares: the oldest job is next, whoever sent it."""
_ABOVE_ALL = 2**31 - 1
"""More than any priority: PostgreSQL's largest integer."""
_NEVER_TRIED = "state = 'new' AND attempts = 0"
_IS_DUE = "(not_before <= :now OR not_before > :never)"
_IS_NEAR = (
    "NOT EXISTS (SELECT 1 FROM instances one JOIN instances other ON other.sop_instance_uid = one.sop_instance_uid "
    "WHERE one.id = jobs.instance_id AND other.spool NOT IN ('', :spool) AND other.removed_at IS NULL)"
)
"""No image under the job's SOP instance UID is in the spool of another host: a worker may have to compare them."""
_DUE = {False: _IS_DUE, True: f"{_IS_DUE} AND {_IS_NEAR}"}
"""By whether there are spools to look at."""

_HIGHEST_PRIORITY = {
    dialect: text(f"SELECT priority FROM {table} WHERE {_NEVER_TRIED} AND priority < :below ORDER BY priority DESC LIMIT 1")  # noqa: S608
    # SQLite would rather look up the state, and sort all that it finds
    for dialect, table in (("sqlite", "jobs INDEXED BY ix_jobs_never_tried"), ("postgresql", "jobs"))
}
# each step looks up the next address in the index, where DISTINCT would read all rows
_ADDRESSES = text(
    "WITH RECURSIVE found(host) AS ("  # noqa: S608
    f"SELECT min(host) FROM jobs WHERE {_NEVER_TRIED} AND priority = :priority "
    f"UNION ALL SELECT (SELECT min(host) FROM jobs WHERE {_NEVER_TRIED} AND priority = :priority AND host > found.host) "
    "FROM found WHERE found.host IS NOT NULL) SELECT host FROM found WHERE host IS NOT NULL LIMIT :most"
)
_OF_ADDRESS = {
    spooled: text(
        f"SELECT id FROM jobs WHERE {_NEVER_TRIED} AND priority = :priority AND host = :host AND {due} "  # noqa: S608
        "ORDER BY id LIMIT :most"
    )
    for spooled, due in _DUE.items()
}
_OLDEST = {
    spooled: text(
        f"SELECT id FROM jobs WHERE {_NEVER_TRIED} AND priority = :priority AND {due} ORDER BY id LIMIT :most"  # noqa: S608
    )
    for spooled, due in _DUE.items()
}
_RUNNING = text("SELECT host, count(*) FROM jobs WHERE state = 'running' GROUP BY host")
_TRIED = {
    (dialect, spooled): text(
        f"SELECT id, priority FROM {table} WHERE state = 'new' AND attempts > 0 AND {due} AND created_at < :before "  # noqa: S608
        "ORDER BY priority DESC, id LIMIT 1"
    )
    for dialect, table in (("sqlite", "jobs INDEXED BY ix_jobs_tried"), ("postgresql", "jobs"))  # for the same reason
    for spooled, due in _DUE.items()
}


def is_near(spool: str | None) -> ColumnElement[bool]:
    """Whether a job's image can be read by a host with this spool (empty: none); None: no host has one."""
    return true() if spool is None else text(_IS_NEAR).bindparams(spool=spool)  # type: ignore[return-value]


def never_tried(connection: Connection, now: float, never: float, count: int, spool: str | None = None) -> list[int]:
    """The IDs of up to `count` due jobs that were never tried, the next one first.

    Those of the highest priority come first; among these, one after the other is given to the address that has the fewest under
    way. The jobs of one address are taken in the order in which they came.

    Args:
        connection: to the database.
        now: UTC seconds since the epoch.
        never: a job that would wait until after this is due: the clock has been set back since.
        count: how many.
        spool: as for `is_near`.
    """
    found: list[int] = []
    running: dict[str, int] = {host: number for host, number in connection.execute(_RUNNING)}  # noqa: C416
    below = _ABOVE_ALL
    while len(found) < count:
        priority = connection.execute(_HIGHEST_PRIORITY[connection.dialect.name], {"below": below}).scalar()
        if priority is None:
            break
        due = {"priority": priority, "now": now, "never": never, **_named(spool)}
        hosts = connection.execute(_ADDRESSES, {"priority": priority, "most": _MOST_ADDRESSES}).scalars().all()
        if len(hosts) == _MOST_ADDRESSES:
            found += connection.execute(_OLDEST[spool is not None], {**due, "most": count - len(found)}).scalars()
            hosts = []
        order = [(running.get(host, 0), random.random(), host) for host in hosts]
        heapq.heapify(order)
        waiting: dict[str, deque[int]] = {}
        while order and len(found) < count:
            taken, tie, host = heapq.heappop(order)
            if host not in waiting:
                most = count - len(found)
                of_address = connection.execute(_OF_ADDRESS[spool is not None], {**due, "host": host, "most": most})
                waiting[host] = deque(of_address.scalars())
            if waiting[host]:
                found.append(waiting[host].popleft())
                heapq.heappush(order, (taken + 1, tie, host))
        below = priority
    return found


def tried(connection: Connection, now: float, never: float, lapsed: Any, before: float, spool: str | None = None) -> list[int]:
    """The ID of the next due job that was tried before and came before a time, if there is one; arguments as above.

    `lapsed` tells leases that have run out, as a condition.
    """
    due = {"now": now, "never": never, "before": before, **_named(spool)}
    row = connection.execute(_TRIED[connection.dialect.name, spool is not None], due).first()
    left = connection.execute(
        select(jobs.c.id, jobs.c.priority)
        .where(jobs.c.state == JobState.RUNNING, lapsed, jobs.c.attempts > 0, jobs.c.created_at < before, is_near(spool))
        .order_by(jobs.c.priority.desc(), jobs.c.id)
        .limit(1)
    ).first()
    both = [one for one in (row, left) if one is not None]
    return [min(both, key=lambda one: (-one.priority, one.id)).id] if both else []


def _named(spool: str | None) -> dict[str, str]:
    return {} if spool is None else {"spool": spool}
