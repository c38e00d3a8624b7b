"""Studies: the search, its thumbnails, readers' verdicts as CSV."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse, Response, StreamingResponse

from cxr_node.records import INDETERMINATE, LABELS, JobState
from cxr_node.security.printable import is_formula
from cxr_node.store.views import browse, readings
from cxr_node.web import access
from cxr_node.web.access import User, need
from cxr_node.web.pictures import NoPictureError, pictures_of
from cxr_node.web.rendering import LOOK, READ_AUDIT, Number, picture_response, render, texts, when

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from cxr_node.security.event_budget import LogThrottle

router = APIRouter()

_FIELDS = ("patient", "name", "accession", "study", "sender", "answer", "state", "since", "until")
_SIZE = 24
Text = Annotated[str, Query(max_length=200)]


@router.get("/studies")
async def studies(
    request: Request,
    user: Annotated[User, Depends(need(*LOOK))],
    patient: Text = "",
    name: Text = "",
    accession: Text = "",
    study: Text = "",
    sender: Text = "",
    answer: Text = "",
    state: Text = "",
    since: Text = "",
    until: Text = "",
    offset: int = 0,
    page: Annotated[int, Query(ge=1, le=10_000)] = 1,
) -> Response:
    """The search, whose address holds what was asked, so that it can be sent to a colleague."""
    given = dict(zip(_FIELDS, (patient, name, accession, study, sender, answer, state, since, until), strict=True))
    given = {key: value.strip() for key, value in given.items()}
    times = {"since": when(given["since"], "since", offset), "until": when(given["until"], "until", offset)}
    search = browse.Search(**{**given, **times})  # type: ignore[arg-type]
    engine: Engine = request.app.state.engine
    (rows, more), senders = await asyncio.gather(
        run_in_threadpool(browse.find_studies, engine, search, page=page, size=_SIZE), run_in_threadpool(browse.senders, engine)
    )
    asked = {key: value for key, value in given.items() if value}
    # the audit log holds no patient's name
    fields = sorted(asked) or ["all"]
    whose = {"patient_id": given["patient"], "study_instance_uid": given["study"]}
    await access.record(request, "studies-searched", user, detail=f"by {', '.join(fields)}", **whose)
    if times["since"] or times["until"]:
        asked["offset"] = str(offset)
    words = texts()
    return render(
        request,
        "studies.html",
        given=given,
        rows=rows,
        more=more,
        page=page,
        address=lambda number: "/studies?" + urlencode({**asked, "page": number}),
        is_search=bool(asked),
        senders=[(one, one) for one in senders],
        answers=[(one, words.answers[one]) for one in (*LABELS, INDETERMINATE)],
        states=[(one, words.states[one]) for one in (*(str(state) for state in JobState), browse.KEPT)],
        may_export=user.may(*READ_AUDIT),
    )


@router.get("/thumbnails/{instance_id}")
async def thumbnail(request: Request, user: Annotated[User, Depends(need(*LOOK))], instance_id: Number) -> Response:
    """A small JPEG of an image's overlay, or of the image. Audited once an hour for each user: a list has many."""
    image = await run_in_threadpool(browse.image, request.app.state.engine, instance_id)
    if image is None:
        raise HTTPException(404, "There is no such image.")
    try:
        file = await pictures_of(request.app).thumbnail(image)
    except NoPictureError:  # what can't be decoded has a place in the list all the same
        return RedirectResponse("/static/no-picture.svg", 303)
    seen: LogThrottle = request.app.state.thumbnails_seen
    if seen.is_due((user.name, instance_id)):
        whose = {key: image[key] for key in ("patient_id", "study_instance_uid", "sop_instance_uid")}
        await access.record_view(request, user, **whose, detail="thumbnail shown")
    return picture_response(file, "image/jpeg")


@router.get("/readings.csv")
async def export(request: Request, user: Annotated[User, Depends(need("operator", *READ_AUDIT))]) -> Response:
    """What readers said, all of it."""
    await access.record(request, "readings-exported", user)
    engine: Engine = request.app.state.engine
    rows = ({**row, "at": datetime.fromtimestamp(row["at"], UTC).isoformat(timespec="seconds")} for row in readings.every(engine))
    return csv_answer(rows, readings.COLUMNS, "readings.csv")


def csv_answer(rows: Iterator[dict[str, Any]], columns: tuple[str, ...], name: str) -> Response:
    """Rows as a CSV file, written as they are read. What a spreadsheet would take for a formula is marked as text."""

    def lines() -> Iterator[str]:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(columns)
        for row in rows:
            writer.writerow([_harmless(row[column]) for column in columns])
            if text.tell() > 1 << 16:
                yield text.getvalue()
                text.seek(0)
                text.truncate()
        yield text.getvalue()

    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return StreamingResponse(lines(), media_type="text/csv; charset=utf-8", headers=headers)


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and is_formula(value) else value
