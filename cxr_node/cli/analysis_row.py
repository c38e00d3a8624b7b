"""Analyses one file for `analyze`: its results, and its row in results.json or the table."""

from __future__ import annotations

import io
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pydicom
from PIL import Image

from cxr_node import logs
from cxr_node.cli.places import Place, fetched
from cxr_node.compose import compose_results
from cxr_node.compose.deidentify import DUMMY_TIME, TEXT_BLACKED, TEXT_MAY_REMAIN, shows_text
from cxr_node.errors import BucketUnavailable, CxrNodeError, Rejected
from cxr_node.node.work import as_json
from cxr_node.prepare.decode import is_dicom
from cxr_node.prepare.geometry import mask_to_source
from cxr_node.prepare.source import Source, read_any
from cxr_node.records import ANALYSIS_KINDS, Findings, Model, ResultKind
from cxr_node.settings import Settings

Row = dict[str, Any]
"""An object of results.json."""


@dataclass(frozen=True)
class AnalyzeOptions:
    """Options of a run."""

    model: Model
    out: Place
    settings: Settings
    kinds: Collection[ResultKind]
    deidentify: bool
    blank_text: bool = False


def parse_kinds(text: str) -> tuple[ResultKind, ...]:
    """The kinds of object that `--objects` names: "all", or names with commas between them.

    Raises:
        CxrNodeError: there is no kind of such a name.
    """
    if text.strip() == "all":
        return ANALYSIS_KINDS
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in ANALYSIS_KINDS]
    if unknown or not names:
        raise CxrNodeError(f"--objects {text!r}: choose from {', '.join(ANALYSIS_KINDS)}, or all.")
    return tuple(kind for kind in ANALYSIS_KINDS if kind in names)


def read_source(source: str, options: AnalyzeOptions) -> Source | Row:
    """A file, or its row if it can't be analysed.

    Raises:
        BucketUnavailable: the bucket can't be reached, which is no file's fault.
    """
    try:
        with fetched(source, options.out.storage) as path:
            try:
                return read_any(path)
            except Exception as error:  # one file must not affect the others
                return unread(path, error, options.model)
    except FileNotFoundError as error:
        return unread(Path(), error, options.model)


def _without_text(source: Source, findings: Findings) -> tuple[Source, int]:
    """The source with text outside the lungs blacked, as composing shows it; and how many lines were found."""
    from cxr_node.prepare.burned_text import blackened

    radiograph = source.radiograph
    pixels, count = blackened(radiograph.pixels, mask_to_source(findings.lungs, radiograph.geometry))
    return replace(source, radiograph=replace(radiograph, pixels=pixels)), count


def unread(path: Path, error: Exception, model: Model) -> dict[str, Any]:
    """The row of a file that was rejected, or couldn't be read, before any network saw it."""
    if isinstance(error, Rejected):
        return row_of(_uid_of(path), "rejected", error.reasons, model)
    return row_of("", "failed", (_explain_reading(error),), model)


def written(name: str, source: Source, outcome: Findings | Rejected, options: AnalyzeOptions) -> dict[str, Any]:
    """Write a file's results as `name` below the folder of the run, and give its row."""
    uid = str(source.ds.get("SOPInstanceUID", ""))
    if isinstance(outcome, Rejected):
        return row_of(uid, "rejected", outcome.reasons, options.model)
    try:
        return _write_results(name, source, outcome, options)
    except BucketUnavailable:  # not the fault of the file: the run ends, and can be resumed
        raise
    except Exception as error:
        return row_of(uid, "failed", (f"The results couldn't be made: {logs.exception_text(error)}",), options.model)


def _write_results(name: str, source: Source, findings: Findings, options: AnalyzeOptions) -> dict[str, Any]:
    started = time.perf_counter()
    files: dict[str, str] = {}
    now = DUMMY_TIME if options.deidentify else datetime.now(UTC).astimezone()
    overlay = options.settings.overlay
    blacked = None
    if options.blank_text:
        source, blacked = _without_text(source, findings)
    for item in compose_results(
        *(source.ds, source.radiograph, findings),
        content_digest=source.content_digest,
        kinds=options.kinds,
        overlay=overlay,
        now=now,
    ):
        files[item.kind] = options.out.write(f"{name}.{item.kind}.dcm", item.content)
        if item.kind == ResultKind.OVERLAY:
            png = io.BytesIO()
            Image.fromarray(pydicom.dcmread(io.BytesIO(item.content)).pixel_array).save(png, "png", compress_level=1)
            files["overlay_png"] = options.out.write(f"{name}.overlay.png", png.getvalue())
    seconds = {"decode": source.decode_s, **findings.seconds, "compose": time.perf_counter() - started}
    seconds["total"] = sum(seconds.values())
    row = row_of(str(source.ds.SOPInstanceUID), "done", (), options.model)
    row |= {**as_json(findings, seconds, source.radiograph.geometry), "files": files}
    if options.deidentify:
        said = TEXT_BLACKED if options.blank_text else TEXT_MAY_REMAIN
        row["burned_in_text"] = {"may_remain": True, "header_says": shows_text(source.ds), "lines_blacked": blacked}
        row["warnings"] = [*row["warnings"], said]
    return row


def row_of(uid: str, status: str, reasons: Sequence[str], model: Model) -> dict[str, Any]:
    """An object of results.json with nothing found in it."""
    return {
        "sop_instance_uid": uid,
        "status": status,
        "reasons": list(reasons),
        "answer": None,
        "likeliest": None,
        "label": None,
        "indeterminate": None,
        "probabilities": None,
        "heat_in_lungs": None,
        "lung_area_fraction": None,
        "model": {"name": model.name, "version": model.version},
        "seconds": None,
        "files": {},
    }


def _uid_of(path: Path) -> str:
    """SOP instance UID of a rejected file; empty if none can be read."""
    if not is_dicom(path):
        return ""
    try:
        uid = pydicom.dcmread(path, force=True, specific_tags=["SOPInstanceUID"], stop_before_pixels=True).get("SOPInstanceUID")
    except Exception:  # whatever broken bytes lead pydicom to
        return ""
    return str(uid or "")


def _explain_reading(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "There is no such file."
    if isinstance(error, OSError) and error.strerror:
        return f"The file can't be read: {error.strerror}."
    return f"The file can't be read: {logs.exception_text(error)}"
