"""Destinations: list, test."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path, Request

from cxr_node.web.access import User, need, record
from cxr_node.web.api.models import CONFLICT, NOT_FOUND, Destination, Found
from cxr_node.web.config_check import try_set_up

router = APIRouter(tags=["destinations"])
Name = Annotated[str, Path(max_length=64, pattern=r"^[^\x00]+$")]


@router.get("/destinations", response_model=list[Destination])
def list_destinations(request: Request, _user: Annotated[User, Depends(need("viewer", "operator"))]) -> list[dict[str, Any]]:
    """Each destination of the settings, and each that has something left, as `cxr-node status` has them."""
    rows: list[dict[str, Any]] = request.app.state.status.get()["destinations"]
    return rows


@router.post("/destinations/{name}/try", response_model=list[Found], responses=NOT_FOUND | CONFLICT)
async def try_destination(request: Request, user: Annotated[User, Depends(need("operator"))], name: Name) -> list[dict[str, Any]]:
    """Associate with a destination, C-ECHO it, and see whether it takes what it is to be sent, as `check-config` does."""
    if name not in [destination.name for destination in request.app.state.settings.destinations]:
        raise HTTPException(404, "There is no such destination in the settings.")
    found = await try_set_up(request.app.state.config, name)
    await record(request, "destination-tried", user, detail=name)
    return found
