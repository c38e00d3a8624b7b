"""GET /status."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from cxr_node.web.access import User, need
from cxr_node.web.api.models import Status
from cxr_node.web.timed_cache import TimedCache

router = APIRouter(tags=["status"])


@router.get("/status", response_model=Status)
def status(request: Request, _user: Annotated[User, Depends(need("viewer", "operator", "auditor"))]) -> dict[str, Any]:
    """The state of the node, as `cxr-node status --json` gives it; some seconds old, on a large database up to half a minute."""
    kept: TimedCache[dict[str, Any]] = request.app.state.status
    return kept.get()
