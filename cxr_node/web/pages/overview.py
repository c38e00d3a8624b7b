"""The overview, live by server-sent events; the target of /; the test of a destination."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, HTTPException, Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse
from markupsafe import Markup

from cxr_node.errors import StoreError
from cxr_node.web import access
from cxr_node.web.access import User, need
from cxr_node.web.config_check import try_set_up
from cxr_node.web.rendering import ANYONE, FIRST_VIEW, RUN, age, render, texts
from cxr_node.web.state import NodeFigures

router = APIRouter()

_EVERY_S, _ALIVE_S, _LONGEST_S = 2.0, 20.0, 600.0
_PARTS = ("health", "tiles", "hours", "destinations", "senders", "machine")


@router.get("/")
async def first(user: Annotated[User, Depends(need(*ANYONE))]) -> Response:
    """What each role sees first."""
    return RedirectResponse(FIRST_VIEW.get(user.role, "/overview"), 303)


@router.get("/overview")
async def overview(request: Request, user: Annotated[User, Depends(need(*ANYONE))]) -> Response:
    """The page."""
    return render(request, "overview.html", seen=await _state(request).now(), oldest_age=_oldest_age)


@router.get("/overview/live")
async def live(request: Request, user: Annotated[User, Depends(need(*ANYONE))]) -> Response:
    """The parts of the page as events, each when it changes. The browser asks again when the stream ends."""

    async def events() -> AsyncIterator[str]:
        sent: dict[str, str] = {}
        began = told = time.monotonic()
        yield "retry: 3000\n\n"
        while time.monotonic() - began < _LONGEST_S:  # then the session is checked again
            seen = await _state(request).now()
            for part in _PARTS:
                content = bytes(render(request, f"overview/{part}.html", seen=seen, oldest_age=_oldest_age).body).decode()
                if sent.get(part) != content:
                    if part in sent or part in ("health", "tiles"):  # the rest has just come with the page
                        lines = "".join(f"data: {line}\n" for line in content.splitlines())
                        yield f"event: {part}\n{lines}\n"
                        told = time.monotonic()
                    sent[part] = content
            if time.monotonic() - told > _ALIVE_S:
                yield ": alive\n\n"
                told = time.monotonic()
            await asyncio.sleep(_EVERY_S)
            if await request.is_disconnected() or await access.signed_in(request) is None:
                return

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


@router.post("/destinations/try")
async def try_now(request: Request, user: Annotated[User, Depends(need(*RUN))], name: Annotated[str, Form()]) -> Response:
    """What check-config's trial finds of one destination."""
    settings = request.app.state.settings
    if name not in [destination.name for destination in settings.destinations]:
        raise HTTPException(404, "The settings name no such destination.")
    try:
        found = await try_set_up(request.app.state.config, name)
    except StoreError as error:
        found = [{"severity": "error", "destination": name, "text": str(error)}]
    await access.record(request, "destination-tried", user, detail=name)
    return render(request, "dialog/findings.html", title=f"{texts().overview.destination} {name}", findings=found)


def _state(request: Request) -> NodeFigures:
    state: Any = getattr(request.app.state, "overview", None)
    if state is None:
        state = request.app.state.overview = NodeFigures(request.app.state.settings, request.app.state.engine)
    return state  # type: ignore[no-any-return]


def _oldest_age(at: float) -> Markup:
    """How long ago, which the browser counts on: the page's parts change only when something does."""
    moment = datetime.fromtimestamp(at, UTC)
    return Markup('<time datetime="{}" data-age>{}</time>').format(moment.isoformat(timespec="seconds"), age(time.time() - at))
