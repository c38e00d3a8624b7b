"""One study: the image with its findings, its history, downloads, the report, and actions."""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Form, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.background import BackgroundTask

from cxr_node.errors import BucketUnavailable
from cxr_node.records import LABELS, ZONES, DeliveryState, JobState
from cxr_node.store.files.storage import blobs_of
from cxr_node.store.views import browse, readings
from cxr_node.web import access
from cxr_node.web.access import User, need
from cxr_node.web.pictures import NoPictureError, pictures_of
from cxr_node.web.rendering import LOOK, READ_AUDIT, RUN, Number, picture_response, render, texts, tone

if TYPE_CHECKING:
    from sqlalchemy import Engine

router = APIRouter()

_LAYERS = {"radiograph.png": "image/png", "heat.png": "image/png"}
_OPEN = (DeliveryState.WAITING, DeliveryState.COMMITTING, DeliveryState.HELD)


@router.get("/studies/{study_instance_uid}")
async def study(
    request: Request,
    user: Annotated[User, Depends(need(*LOOK, *READ_AUDIT))],
    study_instance_uid: str,
    image: Number | None = None,
) -> Response:
    """The page. `image`: the number of the instance to show; absent: the last that was received."""
    images = await run_in_threadpool(browse.study, request.app.state.engine, study_instance_uid)
    if not images:
        return render(request, "nothing.html", 404, title=texts().study.title, text=texts().study.none)
    shown = next((row for row in images if row["instance_id"] == image), images[0])
    whose = {"patient_id": shown["patient_id"], "study_instance_uid": study_instance_uid}
    await access.record_view(request, user, **whose, sop_instance_uid=shown["sop_instance_uid"], detail=texts().study.viewed)
    job_ids = [row["job_id"] for row in images if row["job_id"] is not None]
    said = await run_in_threadpool(readings.of_jobs, request.app.state.engine, job_ids)
    return render(
        request,
        "study.html",
        images=images,
        shown=shown,
        probabilities=_probabilities(shown["findings"]),
        zones=zones_of(shown["findings"]),
        history=history(shown),
        said=[row for row in said if row["job_id"] == shown["job_id"]],
        current=_current(shown),
        can_cancel=shown["state"] in (JobState.NEW, JobState.HELD),
        open_deliveries=[row for row in _deliveries(shown) if row["state"] in _OPEN],
        may_see=user.may(*LOOK),
        may_run=user.may(*RUN),
        may_audit=user.may(*READ_AUDIT),
    )


@router.get("/jobs/{job_id}")
async def job(request: Request, user: Annotated[User, Depends(need(*LOOK))], job_id: Number) -> Response:
    """The page of a job's study."""
    image = await _image(request, job_id)
    return RedirectResponse(f"/studies/{image['study_instance_uid']}?image={image['instance_id']}", 303)


@router.get("/images/{instance_id}/layers")
async def layers(request: Request, user: Annotated[User, Depends(need(*LOOK))], instance_id: Number) -> Response:
    """What the viewer needs to know of its layers; they are made at the first call."""
    folder = await _layers(request, instance_id)
    return FileResponse(folder / "layers.json", media_type="application/json", headers={"Cache-Control": "no-store"})


@router.get("/images/{instance_id}/layers/{name}")
async def layer(request: Request, user: Annotated[User, Depends(need(*LOOK))], instance_id: Number, name: str) -> Response:
    """One layer as a picture."""
    if name not in _LAYERS:
        raise HTTPException(404, "There is no such layer.")
    file = await _layers(request, instance_id) / name
    if not file.is_file():
        raise HTTPException(404, "There is no such layer of this image.")
    image = await run_in_threadpool(browse.image, request.app.state.engine, instance_id)
    if image is not None:
        await _note_view(request, user, image, f"{name.removesuffix('.png')} shown")
    return picture_response(file, _LAYERS[name])


@router.get("/images/{instance_id}/source.dcm")
async def source(request: Request, user: Annotated[User, Depends(need(*LOOK))], instance_id: Number) -> Response:
    """The image as it was received."""
    image = await run_in_threadpool(browse.image, request.app.state.engine, instance_id)
    if image is None or image["removed_at"] is not None:
        raise HTTPException(404, "The image is no longer in the data folder: retention has removed it.")
    return await _download(request, user, image, image["path"], f"radiograph-{image['sop_instance_uid']}.dcm")


@router.get("/results/{result_id}.dcm")
async def result(request: Request, user: Annotated[User, Depends(need(*LOOK))], result_id: Number) -> Response:
    """A result object as it is sent."""
    row = await _result(request, result_id)
    return await _download(request, user, row, row["path"], f"{row['kind']}-{row['sop_instance_uid']}.dcm")


@router.get("/results/{result_id}.png")
async def picture(request: Request, user: Annotated[User, Depends(need(*LOOK))], result_id: Number) -> Response:
    """The overlay as PNG."""
    row = await _result(request, result_id)
    if row["kind"] != "overlay":
        raise HTTPException(404, "Only overlays are pictures.")
    try:
        file = await pictures_of(request.app).overlay_png(row["path"])
    except NoPictureError as error:
        raise HTTPException(404, str(error)) from error
    await _note_view(request, user, row, "overlay downloaded as PNG")
    return FileResponse(file, media_type="image/png", filename=f"overlay-{row['sop_instance_uid']}.png")


@router.get("/results/{result_id}/report")
async def report(request: Request, user: Annotated[User, Depends(need(*LOOK))], result_id: Number) -> Response:
    """The structured report as a page."""
    row = await _result(request, result_id)
    if row["kind"] != "report":
        raise HTTPException(404, "This result is no report.")
    try:
        tree = await pictures_of(request.app).report(row["path"])
    except NoPictureError as error:
        raise HTTPException(404, str(error)) from error
    await _note_view(request, user, row, "report read")
    return render(request, "report.html", tree=tree, row=row)


@router.post("/jobs/{job_id}/reading")
async def reading(
    request: Request,
    user: Annotated[User, Depends(need("viewer"))],
    job_id: Number,
    verdict: Annotated[str, Form(max_length=16)],
    comment: Annotated[str, Form(max_length=readings.LONGEST_COMMENT)] = "",
) -> Response:
    """Keep what a reader says of an answer, and show all that was said."""
    engine: Engine = request.app.state.engine
    seen: dict[str, Any] = {"noted": False, "mistake": ""}
    try:
        kept = await run_in_threadpool(
            lambda: readings.add(engine, job_id, user=user.name, host=access.client_of(request), verdict=verdict, comment=comment)
        )
        seen["noted"] = kept
        seen["mistake"] = "" if kept else texts().study.no_answer
    except ValueError:
        seen["mistake"] = texts().study.empty_comment
    said = await run_in_threadpool(readings.of_jobs, engine, [job_id])
    return render(request, "study/readings.html", 422 if seen["mistake"] else 200, said=said, **seen)


@router.get("/images/{instance_id}/state")
async def state_of(request: Request, user: Annotated[User, Depends(need(*LOOK, *READ_AUDIT))], instance_id: Number) -> Response:
    """Where the image is, for a page that waits for its answer."""
    image = await run_in_threadpool(browse.image, request.app.state.engine, instance_id)
    return JSONResponse({"state": image["state"] if image else ""}, headers={"Cache-Control": "no-store"})


def history(image: dict[str, Any]) -> list[dict[str, Any]]:
    """What happened to an image: received, analysed, and each result on its way to each destination, in this order.

    `what`, `tone`, `at` (UTC seconds, or None), and `more`: (what, at) of later steps, and reasons.
    """
    words = texts().study
    entries: list[dict[str, Any]] = [
        {
            "what": words.history_received.format(sender=image["sender"] or texts().site.unknown, host=image["host"]),
            "tone": "good",
            "at": image["received_at"],
            "more": [],
            "reasons": [],
        }
    ]
    entry = _analysis(image)
    if entry is not None:
        entries.append(entry)
    for row in _deliveries(image):
        steps = [(words.history_stored, row["sent_at"]), (words.history_committed, row["committed_at"])]
        entries.append(
            {
                "what": words.history_made.format(
                    kind=texts().kinds.get(row["kind"], row["kind"]), destination=row["destination"]
                ),
                "state": row["state"],
                "tone": tone(row["state"]),
                "at": None,
                "more": [(what, at) for what, at in steps if at],
                "reasons": [row["reason"]] if row["reason"] and row["state"] != DeliveryState.SENT else [],
                "attempts": row["attempts"],
            }
        )
    return entries


def _analysis(image: dict[str, Any]) -> dict[str, Any] | None:
    words = texts().study
    state = image["state"]
    if state == browse.KEPT:
        return {"what": words.kept_because, "tone": "odd", "at": None, "more": [], "reasons": [image["note"]]}
    said = {
        JobState.NEW: words.history_waiting,
        JobState.RUNNING: words.history_running,
        JobState.DONE: words.history_analysed.format(answer=texts().answers.get(image["answer"], image["answer"])),
        JobState.REJECTED: words.history_rejected,
        JobState.HELD: words.history_held,
        JobState.CANCELLED: words.history_cancelled,
    }
    at = image["finished_at"] if state in (JobState.DONE, JobState.REJECTED, JobState.HELD, JobState.CANCELLED) else None
    return {"what": said[JobState(state)], "tone": tone(state), "at": at, "more": [], "reasons": image["reasons"]}


def _deliveries(image: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**row, "kind": one["kind"]} for one in image["results"] for row in one["deliveries"]]


def _current(image: dict[str, Any]) -> list[dict[str, Any]]:
    """The results that can be downloaded, of each kind the newest."""
    newest = {row["kind"]: row for row in image["results"] if row["removed_at"] is None}
    return list(newest.values())


def _probabilities(findings: dict[str, Any]) -> list[tuple[str, float]]:
    found = findings.get("probabilities") or {}
    return [(label, float(found[label])) for label in LABELS if label in found]


def zones_of(findings: dict[str, Any]) -> list[tuple[str, list[tuple[str, float]]]]:
    """For each zone its shares of the heat in each lung: (zone, [(lung, share)]); none where there is no heat."""
    shares = findings.get("heat_by_zone") or {}
    lungs = list(dict.fromkeys(re.sub(rf" ({'|'.join(ZONES)})$", "", place) for place in shares))
    if not any(shares.values()):
        return []
    return [(zone, [(lung, float(shares.get(f"{lung} {zone}", 0.0))) for lung in lungs]) for zone in ZONES]


async def _layers(request: Request, instance_id: Number) -> Any:
    image = await run_in_threadpool(browse.image, request.app.state.engine, instance_id)
    if image is None:
        raise HTTPException(404, "There is no such image.")
    if image["removed_at"] is not None:
        raise HTTPException(404, texts().study.image_gone)
    try:
        return await pictures_of(request.app).layers(image)
    except NoPictureError as error:
        raise HTTPException(404, str(error)) from error


async def _image(request: Request, job_id: Number) -> dict[str, Any]:
    image = await run_in_threadpool(browse.image_of_job, request.app.state.engine, job_id)
    if image is None:
        raise HTTPException(404, f"There is no job {job_id}.")
    return image


async def _result(request: Request, result_id: Number) -> dict[str, Any]:
    row = await run_in_threadpool(browse.result, request.app.state.engine, result_id)
    if row is None or row["removed_at"] is not None:
        raise HTTPException(404, "The result is no longer in the data folder: analyse its image again.")
    return row


async def _download(request: Request, user: User, row: dict[str, Any], key: str, name: str) -> Response:
    near = ExitStack()
    try:
        path = await run_in_threadpool(near.enter_context, blobs_of(request.app.state.settings).fetch(key))
        if not path.is_file():
            raise FileNotFoundError
        await _note_view(request, user, row, f"downloaded {name.partition('-')[0]}")
    except FileNotFoundError as error:
        reason = "retention has removed it, or the host that received it has not uploaded it yet (storage.spool)."
        raise HTTPException(404, f"The file isn't here: {reason}") from error
    except BucketUnavailable as error:
        raise HTTPException(503, str(error)) from error
    return FileResponse(path, media_type="application/dicom", filename=name, background=BackgroundTask(near.close))


async def _note_view(request: Request, user: User, row: dict[str, Any], detail: str) -> None:
    whose = {key: row[key] for key in ("patient_id", "study_instance_uid", "sop_instance_uid")}
    await access.record_view(request, user, **whose, detail=detail)
