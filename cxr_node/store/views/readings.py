"""Readers' verdicts on an answer: agree, disagree, comment. Rows are append-only, each with its audit event."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Engine, insert, select

from cxr_node.records import AuditEvent, JobState
from cxr_node.store.audit_log import audit
from cxr_node.store.database import write
from cxr_node.store.schema import instances, jobs, readings

VERDICTS = ("agree", "disagree", "comment")
"""`comment` is neither of the others, and has a text."""

COLUMNS = (
    *("at", "user", "verdict", "comment", "answer", "model_version", "job_id"),
    *("patient_id", "accession_number", "study_instance_uid", "sop_instance_uid"),
)
"""Of what `every` gives, in their order."""

LONGEST_COMMENT = 4000


def add(engine: Engine, job_id: int, *, user: str, host: str, verdict: str, comment: str) -> bool:
    """Keep what a reader says of the answer that a job has now; False if it has none.

    Raises:
        ValueError: the verdict is none of VERDICTS, or there is nothing in a comment.
    """
    comment = comment.strip()[:LONGEST_COMMENT]
    if verdict not in VERDICTS or (verdict == "comment" and not comment):
        raise ValueError("a reading is agree, disagree, or a comment with a text")
    with write(engine) as connection:
        row = (
            connection.execute(
                select(jobs.c.answer, jobs.c.model_version, instances)
                .join(instances, jobs.c.instance_id == instances.c.id)
                .where(jobs.c.id == job_id, jobs.c.state == JobState.DONE)
            )
            .mappings()
            .first()
        )
        if row is None:
            return False
        values = {"user": user[:64], "verdict": verdict, "comment": comment}
        said = {"answer": row["answer"], "model_version": row["model_version"]}
        connection.execute(insert(readings).values(job_id=job_id, at=time.time(), **values, **said))
        whose = {key: row[key] for key in ("patient_id", "study_instance_uid", "sop_instance_uid")}
        # what the comment says is in the table: it may name anybody
        detail = f"job {job_id}: {verdict}" + (", with a comment" if comment and verdict != "comment" else "")
        audit.add(connection, AuditEvent("reading-noted", user=user, host=host, **whose, detail=detail))
    return True


def of_jobs(engine: Engine, job_ids: list[int]) -> list[dict[str, Any]]:
    """The readings of some jobs, newest first."""
    query = select(readings).where(readings.c.job_id.in_(job_ids)).order_by(readings.c.id.desc())
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def every(engine: Engine, since: float | None = None, until: float | None = None) -> Iterator[dict[str, Any]]:
    """All readings with what they are of, oldest first; times are UTC seconds since the epoch."""
    columns = [readings.c[name] for name in COLUMNS if name in readings.c]
    columns += [instances.c[name] for name in COLUMNS if name not in readings.c]
    query = select(*columns).join(jobs, readings.c.job_id == jobs.c.id).join(instances, jobs.c.instance_id == instances.c.id)
    if since is not None:
        query = query.where(readings.c.at >= since)
    if until is not None:
        query = query.where(readings.c.at < until)
    with engine.connect() as connection:
        for row in connection.execution_options(yield_per=500).execute(query.order_by(readings.c.id)).mappings():
            yield dict(row)
