"""What is still to be done before the node is empty."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine, func, select

from cxr_node.records import DataFolder, DeliveryState, JobState
from cxr_node.store.schema import deliveries, jobs


@dataclass(frozen=True)
class Left:
    """What is under way, and what waits for a person."""

    receiving: int
    jobs: int
    deliveries: int
    held_jobs: int
    held_deliveries: int

    @property
    def is_empty(self) -> bool:
        """Whether nothing is under way."""
        return not (self.receiving or self.jobs or self.deliveries)


def left(engine: Engine, folders: DataFolder) -> Left:
    """Count what is still to be done."""
    with engine.connect() as connection:

        def count(column: object, *states: str) -> int:
            return int(connection.execute(select(func.count()).where(column.in_(states))).scalar() or 0)  # type: ignore[attr-defined]

        under_way = (DeliveryState.WAITING, DeliveryState.SENDING, DeliveryState.COMMITTING)
        receiving = sum(1 for path in folders.incoming.glob("*") if path.is_file()) if folders.incoming.is_dir() else 0
        return Left(
            receiving,
            count(jobs.c.state, JobState.NEW, JobState.RUNNING),
            count(deliveries.c.state, *under_way),
            count(jobs.c.state, JobState.HELD),
            count(deliveries.c.state, DeliveryState.HELD),
        )
