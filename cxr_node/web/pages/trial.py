"""Try a file: analysed in a child process, its answer shown, nothing stored."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from cxr_node.records import LABELS
from cxr_node.web import access
from cxr_node.web.access import User, need
from cxr_node.web.pages.study import zones_of
from cxr_node.web.rendering import LOOK, render, size, texts
from cxr_node.web.upload_analysis import Progress, analyse_upload, forget, scratch_folder, upload_name
from cxr_node.web.upload_route import upload_route

router = APIRouter(route_class=upload_route(*LOOK))


@router.get("/try")
async def page(request: Request, user: Annotated[User, Depends(need(*LOOK))]) -> Response:
    """The page."""
    most = request.app.state.settings.web.max_upload_mb << 20
    return render(request, "trial.html", most=most, most_in_words=size(most))


@router.post("/try")
async def analyse(request: Request, user: Annotated[User, Depends(need(*LOOK))], file: UploadFile) -> Response:
    """Analyse what was uploaded, and answer with a part of the page."""
    folder = scratch_folder()
    try:
        upload = folder / upload_name(file.filename)
        await run_in_threadpool(_write, file, upload)
        out = folder / "results"
        out.mkdir()
        ended = Progress("failed", reason="")
        async for progress in analyse_upload(upload, out, request.app.state.settings):
            ended = progress
        await access.record(
            request, "file-analysed", user, detail=ended.result.get("status", ended.stage) if ended.result else ended.stage
        )
        picture = await run_in_threadpool(_picture, ended.result)
    finally:
        await run_in_threadpool(forget, folder)
    found: dict[str, Any] = ended.result
    probabilities = found.get("probabilities") or {}
    return render(
        request,
        "trial/answer.html",
        ended=ended,
        found=found,
        picture=picture,
        probabilities=[(label, float(probabilities[label])) for label in LABELS if label in probabilities],
        zones=zones_of(found),
        words=texts().trial,
    )


def _write(file: UploadFile, target: Path) -> None:
    with target.open("wb") as out:
        while chunk := file.file.read(1 << 20):
            out.write(chunk)


def _picture(found: dict[str, Any]) -> str:
    """The overlay as a data: URL, so that no file remains."""
    path = (found.get("files") or {}).get("overlay_png")
    if not path or not Path(path).is_file():
        return ""
    return "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode()
