"""Jobs and deliveries for the web pages, paged from the newest end of an index."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Engine, Select, func, select

from cxr_node.store.queue.selection import Selection, of_deliveries, of_jobs
from cxr_node.store.schema import deliveries, instances, jobs, results


def list_queue(
    engine: Engine, chosen: Selection, *, of: str, before: int | None = None, size: int = 50
) -> tuple[list[dict[str, Any]], bool]:
    """A page of what a selection means, the newest first, and whether there are more; `of` is "jobs" or "deliveries"."""
    table = jobs if of == "jobs" else deliveries
    query = _queue_query(chosen, of)
    if before is not None:
        query = query.where(table.c.id < before)
    with engine.connect() as connection:
        found = connection.execute(query.order_by(table.c.id.desc()).limit(size + 1)).mappings().all()
    rows = []
    for row in found[:size]:
        reasons = json.loads(row["reasons"]) if of == "jobs" else [row["reason"]]
        rows.append({**row, "reasons": [reason for reason in reasons if reason]})
    return rows, len(found) > size


def count_queue(engine: Engine, chosen: Selection, *, of: str, most: int) -> int:
    """How many a selection means; counting stops at `most`."""
    inner = _queue_query(chosen, of).limit(most).subquery()
    with engine.connect() as connection:
        return int(connection.execute(select(func.count()).select_from(inner)).scalar_one())


def count_by_state(engine: Engine) -> dict[str, dict[str, int]]:
    """How many jobs and deliveries are in each state."""
    with engine.connect() as connection:
        return {
            table.name: {
                str(state): int(count)
                for state, count in connection.execute(select(table.c.state, func.count()).group_by(table.c.state)).all()
            }
            for table in (jobs, deliveries)
        }


def _queue_query(chosen: Selection, of: str) -> Select[Any]:
    whose = (
        instances.c.study_instance_uid,
        instances.c.patient_id,
        instances.c.accession_number,
        instances.c.calling_ae_title.label("sender"),
        instances.c.received_at,
    )
    if of == "jobs":
        own = (jobs.c.id, jobs.c.state, jobs.c.attempts, jobs.c.reasons, jobs.c.not_before, jobs.c.created_at, jobs.c.finished_at)
        joined = select(*own, *whose).join(instances, jobs.c.instance_id == instances.c.id)
        return joined.where(of_jobs(chosen))
    own_columns = ("id", "destination", "state", "attempts", "status", "reason", "not_before", "created_at", "sent_at")
    joined = (
        select(*(deliveries.c[name] for name in (*own_columns, "committed_at")), results.c.kind, results.c.job_id, *whose)
        .join(results, deliveries.c.result_id == results.c.id)
        .join(jobs, results.c.job_id == jobs.c.id)
        .join(instances, jobs.c.instance_id == instances.c.id)
    )
    return joined.where(of_deliveries(chosen))
