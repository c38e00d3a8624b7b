"""The mark on a job that an operator wants its results sent again although they were sent."""

from __future__ import annotations

import json

from sqlalchemy import Connection, select

from cxr_node.store.schema import jobs

BEING_MADE = "Its file is gone; it is being made again."
"""Why a delivery is held until its job has composed its result again."""
_MARK = "send_again"


def mark(findings: str) -> str:
    """The findings of a job (JSON), marked so that its results are sent again when it is done."""
    return json.dumps({**json.loads(findings), _MARK: True})


def is_marked(connection: Connection, job_id: int) -> bool:
    """Whether a job is marked. The mark disappears when the job ends with new findings."""
    findings = connection.execute(select(jobs.c.findings).where(jobs.c.id == job_id)).scalar()
    return bool(json.loads(findings or "{}").get(_MARK))
