"""Counts of refused images and associations by day, sender and reason, for `status`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, delete, func, insert, select, update

from cxr_node.store.database import write
from cxr_node.store.schema import refusals as table
from cxr_node.store.views import tallies

_DAY_S = 86400
_KEPT_DAYS = 30
_MOST_ROWS_A_DAY = 500
OTHERS = "others: that day had too many different senders or reasons"
"""Made-up names fill no database."""
_LONGEST_REASON = 255


class CountedRefusal(NamedTuple):
    """What was refused ("image" or "association"), to whom and why."""

    what: str
    sender: str
    host: str
    reason: str


def add(engine: Engine, counted: Mapping[CountedRefusal, int]) -> None:
    """Add to the counts of today, and forget those of more than 30 days ago."""
    now = time.time()
    day = int(now // _DAY_S)
    with write(engine) as connection:
        tallies.keep_refusals(connection, day - _KEPT_DAYS)
        connection.execute(delete(table).where(table.c.day < day - _KEPT_DAYS))
        for given, count in counted.items():
            refusal = given._replace(sender=given.sender[:16], reason=given.reason[:_LONGEST_REASON])
            if _added(connection, day, refusal, count, now):
                continue
            rows = connection.execute(select(func.count()).select_from(table).where(table.c.day == day)).scalar() or 0
            if rows >= _MOST_ROWS_A_DAY:
                refusal = CountedRefusal(given.what, "", "", OTHERS)
                if _added(connection, day, refusal, count, now):
                    continue
            values = {"day": day, "count": count, "first_at": now, "last_at": now}
            connection.execute(insert(table).values(**values, **refusal._asdict()))


def _added(connection: Connection, day: int, refusal: CountedRefusal, count: int, now: float) -> bool:
    same = [table.c.day == day, *(table.c[key] == value for key, value in refusal._asdict().items())]
    changed = connection.execute(update(table).where(*same).values(count=table.c.count + count, last_at=now))
    return changed.rowcount > 0


def refusals(engine: Engine, days: int = 7) -> list[dict[str, Any]]:
    """What was refused in the last days, the most often refused first.

    Args:
        engine: the database.
        days: how many; today counts as one.

    Returns:
        `what` ("image" or "association"), `sender` (its AE title; empty where it said none), `host`, `reason`, `count`,
        `first_at` and `last_at` (UTC seconds since the epoch).
    """
    since = int(time.time() // _DAY_S) - days + 1
    keys = (table.c.what, table.c.sender, table.c.host, table.c.reason)
    count = func.sum(table.c.count).label("count")
    query = (
        select(*keys, count, func.min(table.c.first_at).label("first_at"), func.max(table.c.last_at).label("last_at"))
        .where(table.c.day >= since)
        .group_by(*keys)
        .order_by(count.desc(), func.max(table.c.last_at).desc())
    )
    with engine.connect() as connection:
        return [{**row, "count": int(row["count"])} for row in connection.execute(query).mappings()]
