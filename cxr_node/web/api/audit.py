"""GET /audit."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool

from cxr_node.store.audit_log import audit
from cxr_node.web.access import User, need, record
from cxr_node.web.api import selections
from cxr_node.web.api.models import AuditRow, Moment, Number, Text

router = APIRouter(tags=["audit"])
Words = Annotated[Text, Query(description="* is a wildcard")]


@router.get("/audit", response_model=list[AuditRow])
async def search(
    request: Request,
    who: Annotated[User, Depends(need("auditor"))],
    patient: Words = "",
    study: Words = "",
    accession: Annotated[Text, Query(description="Also finds its studies' events; * is a wildcard")] = "",
    instance: Words = "",
    event: Words = "",
    user: Words = "",
    address: Words = "",
    outcome: Literal["success", "failure", "rejected"] | None = None,
    text: Annotated[Text, Query(description="Words of the detail; the start of a word with * after it")] = "",
    since: Moment | None = None,
    until: Moment | None = None,
    before: Annotated[Number | None, Query(description="Only events with lower numbers: the page before")] = None,
    limit: selections.Limit = 100,
) -> list[dict[str, Any]]:
    """Events of the audit log, oldest first; at most `limit`, the newest. The search itself is audited."""
    given = {
        **{"patient": patient, "study": study, "accession": accession, "instance": instance, "event": event, "user": user},
        **{"address": address, "outcome": outcome or "", "text": text, "since": since, "until": until},
        **{"before": before, "limit": limit},
    }
    asked: dict[str, Any] = {
        **{"patient_id": patient, "study_instance_uid": study, "accession_number": accession, "sop_instance_uid": instance},
        **{"event": event, "user": user, "host": address, "outcome": outcome or "", "words": text},
        **{"since": selections.seconds(since), "until": selections.seconds(until), "before_id": before, "limit": limit},
    }
    rows = await run_in_threadpool(lambda: list(audit.search(request.app.state.engine, **asked)))
    detail = json.dumps({name: value for name, value in given.items() if value}, ensure_ascii=False, default=str)
    await record(request, "audit-searched", who, detail=detail, patient_id=patient, study_instance_uid=study)
    return rows
