"""The selection of jobs or deliveries in a request's parameters, as in `cxr-node queue`."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, HTTPException, Query

from cxr_node.records import DeliveryState, JobState, ResultKind
from cxr_node.store.queue.selection import Selection
from cxr_node.web.api.models import Change, Moment, Text

Words = Annotated[Text, Query()]
Limit = Annotated[int, Query(ge=1, le=1000, description="Maximum number of entries")]
After = Annotated[int, Query(ge=0, le=2**31 - 1, description="Only those with higher numbers")]


def _of_image(
    study: Words = "",
    patient: Words = "",
    accession: Words = "",
    sop: Words = "",
    sender: Words = "",
    destination: Words = "",
    since: Moment | None = None,
    until: Moment | None = None,
) -> Selection:
    return Selection(
        study=study,
        patient=patient,
        accession=accession,
        sop=sop,
        sender=sender,
        destination=destination,
        since=seconds(since),
        until=seconds(until),
    )


OfImage = Annotated[Selection, Depends(_of_image)]


def of_jobs(chosen: OfImage, state: JobState | None = None) -> Selection:
    """A FastAPI dependency: jobs by query parameters."""
    return replace(chosen, state=state or "")


def of_deliveries(chosen: OfImage, state: DeliveryState | None = None, kind: ResultKind | None = None) -> Selection:
    """A FastAPI dependency: deliveries by query parameters."""
    return replace(chosen, state=state or "", kind=kind or "")


def to_change(change: Change, *, deliveries: bool) -> Selection:
    """The selection in a request body.

    Raises:
        HTTPException: 422: it is empty, or its state or kind does not exist.
    """
    given = change.model_dump(exclude={"numbers", "since", "until", "dry_run"})
    numbers = tuple(dict.fromkeys(change.numbers))
    chosen = Selection(numbers=numbers, since=seconds(change.since), until=seconds(change.until), **given)
    if problem := chosen.problem(deliveries=deliveries):
        raise HTTPException(422, problem)
    if chosen.is_everything:
        raise HTTPException(422, 'Say which: by "numbers", or by "state", "study", "patient" and the like; not simply all.')
    return chosen


def seconds(moment: datetime | None) -> float | None:
    """UTC seconds since the epoch; a time without an offset is UTC.

    Raises:
        HTTPException: 422: it is outside of what can be counted so.
    """
    if moment is None:
        return None
    try:
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (OverflowError, ValueError) as error:
        raise HTTPException(422, "since, until: this is no time of this age.") from error
