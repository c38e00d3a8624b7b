"""The audit log: its search, histories of patients and studies, export. Each search and each export is an audit event."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse

from cxr_node.store.audit_log import audit as log
from cxr_node.store.times import iso_to_the_millisecond
from cxr_node.store.views import browse, hours
from cxr_node.web import access
from cxr_node.web.access import User, need
from cxr_node.web.pages.studies import csv_answer
from cxr_node.web.rendering import READ_AUDIT, Number, render, when

if TYPE_CHECKING:
    from sqlalchemy import Engine

router = APIRouter()

_FILTERS = {
    **{"patient": "patient_id", "study": "study_instance_uid", "accession": "accession_number", "instance": "sop_instance_uid"},
    **{"event": "event", "user": "user", "address": "host", "outcome": "outcome", "text": "words"},
}
"""Fields of the form, named as in REST, and the arguments of `audit.search`."""
_OUTCOMES = ("success", "failure", "rejected")
_SIZE = 100


@router.get("/audit")
async def search(request: Request, user: Annotated[User, Depends(need(*READ_AUDIT))], before: Number | None = None) -> Response:
    """The page; its address holds the search."""
    given, asked = _given(request)
    engine: Engine = request.app.state.engine
    rows, more = await run_in_threadpool(hours.audit_page, engine, asked, before=before, size=_SIZE)
    events = await run_in_threadpool(browse.events, engine)
    await _note(request, user, "audit-searched", given)
    kept = {key: value for key, value in given.items() if value}
    return render(
        request,
        "audit.html",
        given=given,
        rows=rows,
        more=more,
        before=before,
        events=events,
        outcomes=_OUTCOMES,
        next_page="/audit?" + urlencode({**kept, "before": rows[-1]["id"] if rows else 0}),
        first_page="/audit?" + urlencode(kept),
        export="?" + urlencode(kept),
    )


@router.get("/audit.{form}")
async def export(
    request: Request,
    user: Annotated[User, Depends(need(*READ_AUDIT))],
    form: str,
    limit: Annotated[Number | None, Query(ge=1)] = None,
) -> Response:
    """What the search finds, all of it, oldest first: audit.csv, or audit.jsonl with an object a line."""
    given, asked = _given(request)
    await _note(request, user, "audit-exported", given)
    found = log.search(request.app.state.engine, **asked, limit=limit)
    rows = ({**row, "at": iso_to_the_millisecond(row["at"])} for row in found)
    if form == "csv":
        return csv_answer(rows, log.COLUMNS, "audit.csv")

    def lines() -> Iterator[str]:
        for row in rows:
            yield json.dumps(row, ensure_ascii=False) + "\n"

    headers = {"Content-Disposition": 'attachment; filename="audit.jsonl"', "Cache-Control": "no-store"}
    return StreamingResponse(lines(), media_type="application/x-ndjson", headers=headers)


def _given(request: Request) -> tuple[dict[str, str], dict[str, Any]]:
    """What was typed, and the arguments of `audit.search` that it means."""
    given = {key: request.query_params.get(key, "").strip()[:200] for key in (*_FILTERS, "since", "until", "offset")}
    if given["outcome"] not in _OUTCOMES:
        given["outcome"] = ""
    offset = int(given["offset"]) if given["offset"].removeprefix("-").isdecimal() else 0
    if not (given["since"] or given["until"]):
        given["offset"] = ""
    times = {name: when(given[name], name, offset) for name in ("since", "until")}
    return given, {**{argument: given[key] for key, argument in _FILTERS.items()}, **times}


async def _note(request: Request, user: User, event: str, given: dict[str, str]) -> None:
    detail = json.dumps({key: value for key, value in given.items() if value}, ensure_ascii=False)
    whose = {"patient_id": given["patient"], "study_instance_uid": given["study"]}
    await access.record(request, event, user, detail=detail, **whose)
