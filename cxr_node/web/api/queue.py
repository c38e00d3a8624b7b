"""Jobs and deliveries: list, show, retry, cancel, with the filters of `cxr-node queue`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Path, Request
from fastapi.concurrency import run_in_threadpool

from cxr_node.records import quantity
from cxr_node.store.queue import changes
from cxr_node.store.queue.selection import Selection
from cxr_node.store.views import overview
from cxr_node.web.access import User, need, record, record_list, record_view
from cxr_node.web.api import selections
from cxr_node.web.api.models import CONFLICT, NOT_FOUND, Change, Delivery, DeliveryPage, JobInFull, JobPage, Outcome

router = APIRouter(tags=["queue"])
Looks = Annotated[User, Depends(need("viewer", "operator"))]
Changes = Annotated[User, Depends(need("operator"))]
Id = Annotated[int, Path(ge=1, le=2**31 - 1)]
Action = Literal["retry", "cancel"]


@router.get("/jobs", response_model=JobPage)
async def list_jobs(
    request: Request,
    user: Looks,
    chosen: Annotated[Selection, Depends(selections.of_jobs)],
    limit: selections.Limit = 100,
    after: selections.After = 0,
) -> dict[str, Any]:
    """Jobs, oldest first, by the selection of `cxr-node queue list`. Audited as a view of the queue."""
    engine = request.app.state.engine
    rows = await run_in_threadpool(lambda: overview.list_jobs(engine, limit=limit + 1, after=after, **vars(chosen)))
    await record_list(request, user, "queue-viewed", quantity(len(rows[:limit]), "job"), chosen)
    return {"jobs": rows[:limit], "next": rows[limit - 1]["id"] if len(rows) > limit else None}


@router.get("/deliveries", response_model=DeliveryPage)
async def list_deliveries(
    request: Request,
    user: Looks,
    chosen: Annotated[Selection, Depends(selections.of_deliveries)],
    limit: selections.Limit = 100,
    after: selections.After = 0,
) -> dict[str, Any]:
    """Deliveries, oldest first, by the selection of `cxr-node queue list deliveries`. Audited as a view of the queue."""
    engine = request.app.state.engine
    rows = await run_in_threadpool(lambda: overview.list_deliveries(engine, limit=limit + 1, after=after, **vars(chosen)))
    await record_list(request, user, "queue-viewed", quantity(len(rows[:limit]), "delivery", "deliveries"), chosen)
    return {"deliveries": rows[:limit], "next": rows[limit - 1]["id"] if len(rows) > limit else None}


@router.get("/jobs/{number}", response_model=JobInFull, responses=NOT_FOUND)
async def show_job(request: Request, user: Looks, number: Id) -> dict[str, Any]:
    """One job with its results and deliveries. Audited as a view of the patient's results."""
    found = await run_in_threadpool(overview.show_job, request.app.state.engine, number)
    if found is None:
        raise HTTPException(404, f"There is no job {number}.")
    whose = {key: found[key] for key in ("patient_id", "study_instance_uid", "sop_instance_uid")}
    await record_view(request, user, **whose)
    return found


@router.get("/deliveries/{number}", response_model=Delivery, responses=NOT_FOUND)
async def show_delivery(request: Request, user: Looks, number: Id) -> dict[str, Any]:
    """One delivery. Audited as a view of the queue."""
    rows = await run_in_threadpool(lambda: overview.list_deliveries(request.app.state.engine, numbers=(number,)))
    if not rows:
        raise HTTPException(404, f"There is no delivery {number}.")
    whose = {key: str(rows[0].get(key) or "") for key in ("patient_id", "study_instance_uid", "sop_instance_uid")}
    await record(request, "queue-viewed", user, detail=f"delivery {number}", **whose)
    return rows[0]


@router.post("/jobs/{action}", response_model=Outcome)
def change_jobs(request: Request, user: Changes, action: Action, change: Change) -> dict[str, Any]:
    """Retry or cancel all selected jobs in one transaction; with `dry_run` only count them."""
    chosen = selections.to_change(change, deliveries=False)
    return _carry_out(request, user, "jobs", action, chosen, dry_run=change.dry_run)


@router.post("/deliveries/{action}", response_model=Outcome)
def change_deliveries(request: Request, user: Changes, action: Action, change: Change) -> dict[str, Any]:
    """Retry or cancel all selected deliveries in one transaction; with `dry_run` only count them."""
    chosen = selections.to_change(change, deliveries=True)
    return _carry_out(request, user, "deliveries", action, chosen, dry_run=change.dry_run)


@router.post("/jobs/{number}/{action}", response_model=Outcome, responses=NOT_FOUND | CONFLICT)
def change_job(request: Request, user: Changes, number: Id, action: Action) -> dict[str, Any]:
    """Retry or cancel one job."""
    return _one(_carry_out(request, user, "jobs", action, Selection(numbers=(number,))), f"job {number}")


@router.post("/deliveries/{number}/{action}", response_model=Outcome, responses=NOT_FOUND | CONFLICT)
def change_delivery(request: Request, user: Changes, number: Id, action: Action) -> dict[str, Any]:
    """Retry or cancel one delivery."""
    return _one(_carry_out(request, user, "deliveries", action, Selection(numbers=(number,))), f"delivery {number}")


def _carry_out(
    request: Request, user: User, what: str, action: Action, chosen: Selection, *, dry_run: bool = False
) -> dict[str, Any]:
    engine, settings = request.app.state.engine, request.app.state.settings
    deliveries = what == "deliveries"
    outcome = changes.change(engine, action, chosen, user.name[:64], settings, deliveries=deliveries, dry_run=dry_run)
    return {
        "chosen": outcome.chosen,
        "changed": outcome.changed,
        "refused": [{"reason": reason, "numbers": numbers} for reason, numbers in outcome.refused.items()],
        "absent": outcome.absent,
        "deliveries_added": outcome.added.deliveries,
        "jobs_done_again": outcome.added.jobs,
        "dry_run": dry_run,
    }


def _one(outcome: dict[str, Any], name: str) -> dict[str, Any]:
    if outcome["absent"]:
        raise HTTPException(404, f"There is no {name}.")
    if outcome["refused"]:
        raise HTTPException(409, f"{name.capitalize()} is left as it is: {outcome['refused'][0]['reason']}.")
    return outcome
