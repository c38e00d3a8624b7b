"""Results that a person wants sent again although they were sent: how a job is told so."""

from __future__ import annotations

import json

from sqlalchemy import Connection, select

from cxr_node.store.schema import jobs

BEING_MADE = "Its file is gone; it is being made again."
"""Why a delivery is held until its job has made its result anew."""
_MARK = "send_again"


def ask(findings: str) -> str:
    """The findings of a job (JSON) with the mark that its results are sent again once it is done."""
    return json.dumps({**json.loads(findings), _MARK: True})


def is_asked(connection: Connection, job_id: int) -> bool:
    """Whether a job bears that mark, which goes when it ends with new findings."""
    findings = connection.execute(select(jobs.c.findings).where(jobs.c.id == job_id)).scalar()
    return bool(json.loads(findings or "{}").get(_MARK))
