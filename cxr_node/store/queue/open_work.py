"""The remaining work until the node is empty."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine, func, select

from cxr_node.records import DataFolder, DeliveryState, JobState
from cxr_node.store.schema import deliveries, instances, jobs


@dataclass(frozen=True)
class OpenWork:
    """What is under way, and what waits for a person."""

    receiving: int
    uploads: int
    jobs: int
    deliveries: int
    held_jobs: int
    held_deliveries: int

    @property
    def is_empty(self) -> bool:
        """Whether nothing is under way."""
        return not (self.receiving or self.uploads or self.jobs or self.deliveries)


def count_open_work(engine: Engine, folders: DataFolder, spool: str = "") -> OpenWork:
    """Count what is still to be done; `spool` is this host's, empty if it has none."""
    with engine.connect() as connection:

        def count(column: object, *states: str) -> int:
            return int(connection.execute(select(func.count()).where(column.in_(states))).scalar() or 0)  # type: ignore[attr-defined]

        under_way = (DeliveryState.WAITING, DeliveryState.SENDING, DeliveryState.COMMITTING)
        receiving = sum(1 for path in folders.incoming.glob("*") if path.is_file()) if folders.incoming.is_dir() else 0
        in_spool = select(func.count()).where(instances.c.spool == spool, instances.c.removed_at.is_(None))
        return OpenWork(
            receiving,
            int(connection.execute(in_spool).scalar() or 0) if spool else 0,
            count(jobs.c.state, JobState.NEW, JobState.RUNNING),
            count(deliveries.c.state, *under_way),
            count(jobs.c.state, JobState.HELD),
            count(deliveries.c.state, DeliveryState.HELD),
        )
