"""Current counts for monitoring."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, func, select

from cxr_node.records import DeliveryState, JobState
from cxr_node.store.schema import deliveries, jobs

_OPEN_JOBS = (JobState.NEW, JobState.RUNNING)
_OPEN_DELIVERIES = (DeliveryState.WAITING, DeliveryState.SENDING, DeliveryState.COMMITTING)


@dataclass(frozen=True)
class Gauges:
    """Jobs by state, deliveries by destination and state; the age in seconds of the oldest that waits, 0 if none does."""

    jobs: dict[str, int]
    deliveries: dict[tuple[str, str], int]
    oldest_job_s: float
    oldest_delivery_s: float


def gauges(engine: Engine) -> Gauges:
    """Ask for them; every state of the jobs is there, if only with 0."""
    now = time.time()
    with engine.connect() as connection:

        def oldest(table: Any, states: tuple[str, ...]) -> float:
            found = connection.execute(select(func.min(table.c.created_at)).where(table.c.state.in_(states))).scalar()
            return 0.0 if found is None else max(0.0, now - found)

        by_state = {state.value: 0 for state in JobState}
        for state, count in connection.execute(select(jobs.c.state, func.count()).group_by(jobs.c.state)):
            by_state[state] = count
        query = select(deliveries.c.destination, deliveries.c.state, func.count())
        grouped = connection.execute(query.group_by(deliveries.c.destination, deliveries.c.state))
        by_destination = {(name, state): count for name, state, count in grouped}
        return Gauges(by_state, by_destination, oldest(jobs, _OPEN_JOBS), oldest(deliveries, _OPEN_DELIVERIES))
