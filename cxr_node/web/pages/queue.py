"""The queue: jobs and deliveries by state, and operators' changes to them, each after a confirmation."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from cxr_node.records import DeliveryState, JobState, ResultKind
from cxr_node.store.queue import changes
from cxr_node.store.queue.selection import Selection
from cxr_node.store.views import browse_queue
from cxr_node.web import access
from cxr_node.web.access import User, need
from cxr_node.web.rendering import RUN, Number, render, texts, when

if TYPE_CHECKING:
    from sqlalchemy import Engine

router = APIRouter()

_TEXTS = ("state", "study", "patient", "accession", "sop", "sender", "kind", "destination")
_FIELDS = (*_TEXTS, "since", "until", "offset", "numbers")
_SIZE = 50
_MOST_TRIED = 2000
"""A selection of more is changed without being tried first: a trial holds the database's write lock as long as the change."""


@router.get("/queue")
async def queue(
    request: Request,
    user: Annotated[User, Depends(need(*RUN))],
    of: Annotated[str, Query(pattern="^(jobs|deliveries)$")] = "jobs",
    before: Number | None = None,
) -> Response:
    """The page; its address holds the selection."""
    given = {key: value for key, value in request.query_params.items() if key in _FIELDS and value}
    chosen = selection(given, of)
    engine: Engine = request.app.state.engine
    (rows, more), counts = await asyncio.gather(
        run_in_threadpool(browse_queue.list_queue, engine, chosen, of=of, before=before, size=_SIZE),
        run_in_threadpool(browse_queue.count_by_state, engine),
    )
    await access.record_list(request, user, "queue-viewed", f"{len(rows)} {of}", chosen)
    words = texts()
    states = JobState if of == "jobs" else DeliveryState
    kept = {key: value for key, value in given.items() if key != "state"}
    return render(
        request,
        "queue.html",
        of=of,
        given={**dict.fromkeys((*_TEXTS, "since", "until", "numbers"), ""), **given},
        rows=rows,
        more=more,
        before=before,
        next_page="/queue?" + urlencode({"of": of, **given, "before": rows[-1]["id"] if rows else 0}),
        first_page="/queue?" + urlencode({"of": of, **given}),
        states=[(str(one), words.states[str(one)], counts[of].get(str(one), 0)) for one in states],
        address=lambda state: "/queue?" + urlencode({"of": of, **kept, **({"state": state} if state else {})}),
        kinds=[(str(kind), words.kinds[str(kind)]) for kind in ResultKind],
        destinations=[(one.name, one.name) for one in request.app.state.settings.destinations],
        is_everything=chosen.is_everything,
        hidden={"of": of, **given},
        command=_command(given, of),
        kind_names=words.kinds,
    )


@router.post("/queue/confirm")
async def confirm(request: Request, user: Annotated[User, Depends(need(*RUN))]) -> Response:
    """What a change would do, for the dialog; nothing is changed."""
    form, of, action = await _asked(request)
    chosen = selection(form, of)
    engine: Engine = request.app.state.engine
    seen: dict[str, Any] = {"form": form, "of": of, "action": action, "texts": [], "can": False, "refused": []}
    words = texts().confirm
    if chosen.is_everything:
        return render(request, "dialog/confirm.html", **{**seen, "texts": [words.choose]})
    many = await run_in_threadpool(browse_queue.count_queue, engine, chosen, of=of, most=_MOST_TRIED + 1) > _MOST_TRIED
    if many:
        said = words[f"bulk_{action}_{of}"].format(count=f"{_MOST_TRIED}+")
        return render(
            request, "dialog/confirm.html", **{**seen, "texts": [said, words.many.format(most=_MOST_TRIED)], "can": True}
        )
    outcome = await run_in_threadpool(_change(request, user, action, of, chosen, dry_run=True))
    changed = len(outcome.changed)
    added = outcome.added.deliveries
    said = []
    if changed:
        said.append(await run_in_threadpool(_said, engine, form.get("why", ""), action, of, chosen, changed))
    if added:
        said.append(words.added.format(count=added))
    refused = [(len(numbers), reason) for reason, numbers in outcome.refused.items()]
    return render(request, "dialog/confirm.html", **{**seen, "texts": said, "can": bool(said), "refused": refused})


@router.post("/queue/change")
async def change(request: Request, user: Annotated[User, Depends(need(*RUN))]) -> Response:
    """Carry a change out."""
    form, of, action = await _asked(request)
    chosen = selection(form, of)
    if chosen.is_everything:
        raise HTTPException(422, texts().confirm.choose)
    outcome = await run_in_threadpool(_change(request, user, action, of, chosen, dry_run=False))
    refused = [(len(numbers), reason) for reason, numbers in outcome.refused.items()]
    return render(request, "dialog/done.html", changed=len(outcome.changed) + outcome.added.deliveries, refused=refused)


def selection(given: Any, of: str) -> Selection:
    """The selection in a form or a URL, with the filters of `cxr-node queue`.

    Raises:
        HTTPException: a number, a time, a state or a kind is invalid.
    """
    found = {key: str(given.get(key, "")).strip()[:200] for key in _TEXTS}
    chosen = Selection(**found)  # type: ignore[arg-type]
    if problem := chosen.problem(deliveries=of == "deliveries"):
        raise HTTPException(422, problem)
    words = str(given.get("numbers", "")).replace(",", " ").split()
    if not all(word.isdecimal() and len(word) < 12 and int(word) < 2**31 for word in words):
        raise HTTPException(422, "Numbers are written as digits, separated by spaces.")
    offset = str(given.get("offset", "0"))
    ahead = int(offset) if offset.removeprefix("-").isdecimal() else 0
    return replace(
        chosen,
        numbers=tuple(int(word) for word in words),
        since=when(str(given.get("since", "")), "since", ahead),
        until=when(str(given.get("until", "")), "until", ahead),
    )


def _change(
    request: Request, user: User, action: str, of: str, chosen: Selection, *, dry_run: bool
) -> Callable[[], changes.ChangeOutcome]:
    engine, settings = request.app.state.engine, request.app.state.settings
    change_these = partial(changes.change, engine, action, chosen, user.name, settings)
    return partial(change_these, deliveries=of == "deliveries", dry_run=dry_run)


def _said(engine: Engine, why: str, action: str, of: str, chosen: Selection, changed: int) -> str:
    """The effect of a change as text; for one image, specific to that image."""
    words = texts().confirm
    if why in ("analyse_again", "cancel") and of == "jobs" and len(chosen.numbers) == 1:
        return str(words[why].format(job=chosen.numbers[0]))
    if why == "send_again" and of == "deliveries":
        rows, _ = browse_queue.list_queue(engine, chosen, of=of, size=_MOST_TRIED)
        names = ", ".join(sorted({row["destination"] for row in rows}))
        return str(words.send_again.format(count=changed, destinations=names))
    if why == "cancel_deliveries" and of == "deliveries":
        return str(words.cancel_deliveries.format(count=changed))
    return str(words[f"bulk_{action}_{of}"].format(count=changed))


async def _asked(request: Request) -> tuple[dict[str, str], str, str]:
    form = {key: value for key, value in (await request.form()).items() if isinstance(value, str)}
    of, action = form.get("of", "jobs"), form.get("action", "")
    if of not in ("jobs", "deliveries") or action not in ("retry", "cancel"):
        raise HTTPException(422, "Say of=jobs or of=deliveries, and action=retry or action=cancel.")
    return form, of, action


def _command(given: dict[str, str], of: str) -> str:
    """The same selection for `cxr-node queue`."""
    words = [f"--{key}" if key != "offset" else "" for key in given]
    parts = [
        f"{word} {shlex.quote(value)}" for word, value in zip(words, given.values(), strict=True) if word and word != "--numbers"
    ]
    numbers = given.get("numbers", "").replace(",", " ").split()
    return " ".join(["cxr-node queue list", of, *numbers, *parts])
