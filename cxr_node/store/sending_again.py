"""Results that a person wants sent again although they were sent: how a job is told so, and what becomes of those it replaces."""

from __future__ import annotations

import json

from sqlalchemy import Connection, Engine, and_, select, update

from cxr_node.records import DeliveryState, JobState
from cxr_node.store.database import write
from cxr_node.store.schema import deliveries, jobs, results

BEING_MADE = "Its file is gone; it is being made again."
"""Why a delivery is held until its job has made its result anew."""
_REPLACED = "Its job was done again and made other results in its place; these have deliveries of their own."
_MARK = "send_again"


def ask(findings: str) -> str:
    """The findings of a job (JSON) with the mark that its results are sent again once it is done."""
    return json.dumps({**json.loads(findings), _MARK: True})


def is_asked(connection: Connection, job_id: int) -> bool:
    """Whether a job bears that mark, which goes when it ends with new findings."""
    findings = connection.execute(select(jobs.c.findings).where(jobs.c.id == job_id)).scalar()
    return bool(json.loads(findings or "{}").get(_MARK))


def end_replaced(engine: Engine) -> int:
    """Cancel what is held for a result that its job has not made again: another model made others; how many."""
    other_results = select(results.c.id).join(jobs, results.c.job_id == jobs.c.id)
    replaced = and_(
        deliveries.c.state == DeliveryState.HELD,
        deliveries.c.reason == BEING_MADE,
        deliveries.c.result_id.in_(
            other_results.where(results.c.removed_at.is_not(None), jobs.c.state.in_((JobState.DONE, JobState.REJECTED)))
        ),
    )
    with engine.connect() as connection:
        if connection.execute(select(deliveries.c.id).where(replaced).limit(1)).first() is None:
            return 0
    with write(engine) as connection:
        return connection.execute(
            update(deliveries).where(replaced).values(state=DeliveryState.CANCELLED, reason=_REPLACED)
        ).rowcount
