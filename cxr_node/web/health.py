"""`/healthz`: the process answers. `/readyz`: images can be received, or why not."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse

from cxr_node.settings import Settings
from cxr_node.store.database import DatabaseTrouble, querying
from cxr_node.store.files.instances import free_bytes
from cxr_node.store.files.storage import why_no_bucket
from cxr_node.store.queue import draining
from cxr_node.store.views import presence

router = APIRouter(include_in_schema=False)


@router.get("/healthz", response_class=PlainTextResponse)
async def healthz() -> str:
    """The process is alive. It asks no database, so that a slow disk gets no living process restarted."""
    return "alive\n"


@router.get("/readyz")
async def readyz(request: Request) -> JSONResponse:
    """Whether images can be received: 200, or 503 with the reasons."""
    reasons = await run_in_threadpool(why_not_ready, request.app.state.settings, request.app.state.engine)
    return JSONResponse({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)


def why_not_ready(settings: Settings, engine: object) -> list[str]:
    """Why no image can be received now; empty if they can."""
    reasons = []
    root = settings.node.data_dir
    if "receive" not in [role for role, _ in presence.present(root)]:
        reasons.append("The role receive doesn't run on this machine, or isn't ready yet.")
    if draining.state(root) is not None:
        reasons.append("The node is being drained: `cxr-node drain --end` ends that.")
    try:
        free = free_bytes(root)
    except OSError:
        reasons.append("The data folder can't be read.")
    else:
        if free < settings.receive.min_free_mb * 2**20:
            reasons.append(f"Only {free / 2**20:.0f} MB of disk space are free, less than receive.min_free_mb: free some.")
    try:
        with querying(engine) as query:  # type: ignore[arg-type]
            query("SELECT 1")
    except DatabaseTrouble:
        reasons.append("The database can't be used; the node's log says why.")
    if reason := why_no_bucket(settings):
        reasons.append(reason)
    return reasons
