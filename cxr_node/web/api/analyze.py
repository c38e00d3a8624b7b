"""POST /analyze: returns the `results.json` entry of an uploaded file; nothing is stored or sent."""

from __future__ import annotations

import shutil
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Path, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from cxr_node.web.access import User, need, record
from cxr_node.web.api.models import NOT_FOUND, Analysis
from cxr_node.web.upload_analysis import BusyError, Scratch, analyse_upload, upload_name
from cxr_node.web.upload_route import upload_route

_ROLES = ("viewer", "operator")
router = APIRouter(tags=["analyze"], route_class=upload_route(*_ROLES))
Looks = Annotated[User, Depends(need(*_ROLES))]
_BINARY: dict[str, Any] = {"application/dicom": {}, "image/png": {}}


@router.post("/analyze", response_model=Analysis)
async def analyze(request: Request, user: Looks, file: UploadFile) -> dict[str, Any]:
    """Analyse a DICOM, PNG, JPEG or TIFF file in a process of its own, bounded in memory and time."""
    scratch: Scratch = request.app.state.scratch
    try:
        key, folder = scratch.new(user.name)
    except BusyError as error:
        raise HTTPException(503, str(error), {"Retry-After": "10"}) from error
    upload = folder / upload_name(file.filename)

    def keep() -> None:
        with upload.open("wb") as target:
            shutil.copyfileobj(file.file, target)

    await run_in_threadpool(keep)
    result: dict[str, Any] = {}
    reason = ""
    async for progress in analyse_upload(upload, folder, request.app.state.settings):
        result, reason = progress.result, progress.reason
    upload.unlink(missing_ok=True)
    await record(request, "file-analysed", user, outcome="failure" if reason else "success", detail="an upload; nothing was kept")
    if reason:
        scratch.forget(key)
        raise HTTPException(503, reason)
    links = {kind: f"/api/v1/analyze/{key}/{kind}" for kind in result["files"]}
    return {**{name: value for name, value in result.items() if name != "source"}, "files": links}


@router.get(
    "/analyze/{key}/{kind}",
    response_class=FileResponse,
    responses={200: {"description": "The object", "content": _BINARY}, **NOT_FOUND},
)
def fetch(
    request: Request,
    user: Looks,
    key: Annotated[str, Path(pattern=r"^[0-9a-f]{32}$")],
    kind: Literal["overlay", "lungs", "heatmap", "heatvalues", "presentation", "report", "overlay_png"],
) -> FileResponse:
    """An object of an analysis, for the client that requested it, for fifteen minutes."""
    scratch: Scratch = request.app.state.scratch
    folder = scratch.folder(key, user.name)
    name = "upload.overlay.png" if kind == "overlay_png" else f"upload.{kind}.dcm"
    if folder is None or not (folder / name).is_file():
        raise HTTPException(404, "There is no such object, or its time is over: analyse the file again.")
    return FileResponse(
        folder / name, media_type="image/png" if kind == "overlay_png" else "application/dicom", filename=name[7:]
    )
