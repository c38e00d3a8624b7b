"""What may be removed from disk, and the note that it was. Rows stay: they are the node's memory."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import Engine, exists, select, update

from cxr_node.records import AuditEvent, DeliveryState, JobState
from cxr_node.store import audit
from cxr_node.store.database import write
from cxr_node.store.schema import deliveries, instances, jobs, results

_BATCH = 500


def remove_expired(engine: Engine, received_days: float, results_days: float, remove: Callable[[str], None]) -> tuple[int, int]:
    """Remove files past their time; an instance not yet analysed and a result not yet sent stay, however old.

    Args:
        engine: the database.
        received_days: instances are kept so long after they came.
        results_days: results are kept so long after they were made.
        remove: removes a file by its path relative to the data folder.

    Returns:
        how many instances and how many results were removed.
    """
    now = time.time()
    pending_job = exists().where(
        jobs.c.instance_id == instances.c.id, jobs.c.state.in_((JobState.NEW, JobState.RUNNING, JobState.HELD))
    )
    old_instances = select(instances.c.id, instances.c.path).where(
        instances.c.removed_at.is_(None), instances.c.received_at < now - received_days * 86400, ~pending_job
    )
    pending_delivery = exists().where(
        deliveries.c.result_id == results.c.id,
        deliveries.c.state.not_in((DeliveryState.SENT, DeliveryState.CANCELLED)),
    )
    old_results = select(results.c.id, results.c.path).where(
        results.c.removed_at.is_(None), results.c.created_at < now - results_days * 86400, ~pending_delivery
    )
    counts = []
    for table, query in ((instances, old_instances), (results, old_results)):
        removed = 0
        while True:
            with engine.connect() as connection:
                rows = connection.execute(query.limit(_BATCH)).all()
            for row in rows:  # the file first: a row that says "removed" is always true
                remove(row.path)
            if rows:
                with write(engine) as connection:
                    connection.execute(update(table).where(table.c.id.in_([row.id for row in rows])).values(removed_at=now))
            removed += len(rows)
            if len(rows) < _BATCH:
                break
        counts.append(removed)
    if any(counts):
        audit.record(engine, AuditEvent("retention", detail=f"{counts[0]} instances, {counts[1]} results removed"))
    return counts[0], counts[1]
