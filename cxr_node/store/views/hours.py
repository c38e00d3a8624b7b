"""Figures of the last hours and of each sender for the overview; audit rows in pages."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Connection, Engine, Integer, cast, func, select

from cxr_node.store.audit_log import audit
from cxr_node.store.schema import deliveries, instances, jobs

HOUR_S = 3600


def by_hour(engine: Engine, hours: int = 24) -> list[dict[str, int]]:
    """`at` (UTC seconds at which an hour begins), and how many images were `received` and `analysed` (done or rejected), and how
    many results `sent` in it; the oldest first, the hour that runs last.
    """
    last = int(time.time() // HOUR_S)
    first = last - hours + 1
    with engine.connect() as connection:
        counted = {
            name: _counted(connection, moment, first * HOUR_S)
            for name, moment in (
                ("received", instances.c.received_at),
                ("analysed", jobs.c.finished_at),
                ("sent", deliveries.c.sent_at),
            )
        }
    return [
        {"at": hour * HOUR_S, **{name: found.get(hour, 0) for name, found in counted.items()}} for hour in range(first, last + 1)
    ]


def _counted(connection: Connection, moment: Any, since: float) -> dict[int, int]:
    share = moment / float(HOUR_S)
    hour = func.floor(share) if connection.dialect.name == "postgresql" else cast(share, Integer)
    query = select(hour.label("hour"), func.count()).where(moment >= since).group_by("hour")
    return {int(hour): int(count) for hour, count in connection.execute(query).all()}


def rejected_by_sender(engine: Engine, since: float) -> dict[str, tuple[int, int]]:
    """For each AE title: how many of its images ended in the time, and how many of these were rejected."""
    query = (
        select(instances.c.calling_ae_title, jobs.c.state, func.count())
        .join(instances, jobs.c.instance_id == instances.c.id)
        .where(jobs.c.finished_at >= since, jobs.c.state.in_(("done", "rejected")))
        .group_by(instances.c.calling_ae_title, jobs.c.state)
    )
    found: dict[str, tuple[int, int]] = {}
    with engine.connect() as connection:
        for sender, state, count in connection.execute(query).all():
            ended, rejected = found.get(sender, (0, 0))
            found[sender] = (ended + int(count), rejected + (int(count) if state == "rejected" else 0))
    return found


def audit_page(
    engine: Engine, asked: dict[str, Any], *, before: int | None, size: int = 100
) -> tuple[list[dict[str, Any]], bool]:
    """A page of the audit log, the newest first, and whether there are more.

    Args:
        engine: the database.
        asked: filters of `audit.search`, by its arguments' names.
        before: the number of the last row of the page before.
        size: rows of a page.
    """
    rows = list(audit.search(engine, **asked, before_id=before, limit=size + 1))[::-1]
    return rows[:size], len(rows) > size
