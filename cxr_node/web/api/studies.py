"""GET /studies."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request
from fastapi.concurrency import run_in_threadpool

from cxr_node.records import quantity
from cxr_node.store.queue.selection import Selection
from cxr_node.store.views import overview, studies
from cxr_node.web.access import User, need, record_list, record_view
from cxr_node.web.api import selections
from cxr_node.web.api.models import NOT_FOUND, StudyInFull, StudyPage

router = APIRouter(tags=["studies"])
Looks = Annotated[User, Depends(need("viewer", "operator"))]


@router.get("/studies", response_model=StudyPage)
async def list_studies(
    request: Request,
    user: Looks,
    chosen: Annotated[Selection, Depends(selections.of_jobs)],
    limit: selections.Limit = 100,
    before: Annotated[float | None, Query(ge=0, le=1e11)] = None,
) -> dict[str, Any]:
    """Studies with a job that is chosen, the last received first. Audited as a search."""
    rows = await run_in_threadpool(studies.list_studies, request.app.state.engine, chosen, limit=limit + 1, before=before)
    await record_list(request, user, "studies-searched", quantity(len(rows[:limit]), "study", "studies"), chosen)
    return {"studies": rows[:limit], "next": rows[limit - 1]["last_received_at"] if len(rows) > limit else None}


@router.get("/studies/{study_instance_uid}", response_model=StudyInFull, responses=NOT_FOUND)
async def show_study(
    request: Request,
    user: Looks,
    study_instance_uid: Annotated[str, Path(max_length=64, pattern=r"^[^\x00]+$")],
) -> dict[str, Any]:
    """One study with its jobs, their results and deliveries. Audited as a view of the patient's results."""

    def show() -> dict[str, Any] | None:
        engine = request.app.state.engine
        found = studies.show_study(engine, study_instance_uid)
        if found is None:
            return None
        return {**found, "jobs": [job for number in found["jobs"] if (job := overview.show_job(engine, number)) is not None]}

    found = await run_in_threadpool(show)
    if found is None:
        raise HTTPException(404, "There is no such study here.")
    await record_view(request, user, patient_id=found["patient_id"], study_instance_uid=study_instance_uid)
    return found
