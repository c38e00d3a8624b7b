"""The report of an earlier revision of an image."""

from __future__ import annotations

from sqlalchemy import Engine, select

from cxr_node.records import Job, ResultKind
from cxr_node.store.schema import instances, jobs, results


def report_before(engine: Engine, job: Job) -> str | None:
    """The key of the latest report of an earlier revision in the same study; None if none is there (any more).

    A UID that came again in another study is no correction: a report must not name that of another patient.
    """
    query = (
        select(results.c.path)
        .join(jobs, results.c.job_id == jobs.c.id)
        .join(instances, jobs.c.instance_id == instances.c.id)
        .where(
            instances.c.sop_instance_uid == job.sop_instance_uid,
            instances.c.revision < job.revision,
            instances.c.study_instance_uid == job.study_instance_uid,
            results.c.kind == ResultKind.REPORT,
            results.c.removed_at.is_(None),
        )
        .order_by(instances.c.revision.desc(), results.c.created_at.desc())
        .limit(1)
    )
    with engine.connect() as connection:
        path: str | None = connection.execute(query).scalar()
    return path
