"""The node's studies, for REST."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, func, select

from cxr_node.store.queue.selection import Selection, of_jobs
from cxr_node.store.schema import instances, jobs

_COLUMNS = (
    instances.c.study_instance_uid,
    func.max(instances.c.patient_id).label("patient_id"),
    func.max(instances.c.accession_number).label("accession_number"),
    func.max(instances.c.calling_ae_title).label("sender"),
    func.min(instances.c.received_at).label("first_received_at"),
    func.max(instances.c.received_at).label("last_received_at"),
    func.count(instances.c.id.distinct()).label("images"),
)


def list_studies(engine: Engine, chosen: Selection, *, limit: int, before: float | None = None) -> list[dict[str, Any]]:
    """Studies with a job that is chosen, the last received first; `before`: only those whose last image came before.

    Times are UTC seconds since the epoch.
    """
    newest = func.max(instances.c.received_at)
    query = select(*_COLUMNS).group_by(instances.c.study_instance_uid).order_by(newest.desc()).limit(limit)
    if not chosen.is_everything:
        with_job = select(instances.c.study_instance_uid).join(jobs, jobs.c.instance_id == instances.c.id).where(of_jobs(chosen))
        query = query.where(instances.c.study_instance_uid.in_(with_job))
    if before is not None:
        query = query.having(newest < before)
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def show_study(engine: Engine, study_instance_uid: str) -> dict[str, Any] | None:
    """One study and the numbers of its jobs as `jobs`, or None."""
    query = select(*_COLUMNS).where(instances.c.study_instance_uid == study_instance_uid)
    of_it = select(jobs.c.id).join(instances, jobs.c.instance_id == instances.c.id)
    with engine.connect() as connection:
        row = connection.execute(query.group_by(instances.c.study_instance_uid)).mappings().first()
        if row is None:
            return None
        numbers = connection.execute(of_it.where(instances.c.study_instance_uid == study_instance_uid).order_by(jobs.c.id))
        return {**row, "jobs": list(numbers.scalars())}
