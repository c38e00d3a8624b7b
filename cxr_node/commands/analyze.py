"""`cxr-node analyze`: files in, result files out, no network and no database."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pydicom
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cxr_node import logs
from cxr_node.analyse.networks import Networks, load_networks, use_all_cores
from cxr_node.analyse.pipeline import analyse
from cxr_node.compose import DEFAULT_KINDS, compose_results
from cxr_node.deidentify import DUMMY_TIME, deidentified, shows_text
from cxr_node.errors import CxrNodeError, Rejected, StoreError
from cxr_node.prepare.decode import is_dicom
from cxr_node.records import ANALYSIS_KINDS, Findings, ResultKind
from cxr_node.settings import Settings
from cxr_node.source import Source, read_any
from cxr_node.work import as_json

_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom"}


@dataclass(frozen=True)
class _Order:
    """What is asked for, and with what it is done; `names` are those of the results of each file."""

    networks: Networks
    out: Path
    names: dict[Path, str]
    settings: Settings
    kinds: Collection[ResultKind]
    deidentify: bool


def kinds_named(text: str) -> tuple[ResultKind, ...]:
    """The kinds of object that `--objects` names: "all", or names with commas between them.

    Raises:
        CxrNodeError: there is no kind of such a name.
    """
    if text.strip() == "all":
        return ANALYSIS_KINDS
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in ANALYSIS_KINDS]
    if unknown or not names:
        raise CxrNodeError(f"--objects {text!r}: there are {', '.join(ANALYSIS_KINDS)}, or all.")
    return tuple(kind for kind in ANALYSIS_KINDS if kind in names)


def collect(paths: Sequence[Path], out: Path | None = None) -> list[Path]:
    """The files meant by paths: a file is itself, a folder the DICOM files and images in it, at any depth.

    Each file once. What lies in `out` is left out of folders: an earlier run's results are no sources.
    """
    files: list[Path] = []
    results = out.resolve() if out is not None else None
    for path in paths:
        if path.is_dir():
            inside = (p for p in sorted(path.rglob("*")) if p.is_file() and not p.name.startswith("."))
            if results is not None and results != path.resolve():
                inside = (p for p in inside if not p.resolve().is_relative_to(results))
            files += [p for p in inside if p.suffix.lower() in _IMAGE_SUFFIXES or is_dicom(p)]
        else:
            files.append(path)
    return list(dict.fromkeys(files))


def analyze_files(
    files: Sequence[Path],
    out: Path,
    settings: Settings,
    kinds: Collection[ResultKind] = DEFAULT_KINDS,
    *,
    deidentify: bool = False,
) -> list[dict[str, Any]]:
    """Analyse files, write their results below `out`, and OUT/results.json; a progress bar where there are many.

    Args:
        files: DICOM, PNG, JPEG or TIFF.
        out: folder, made if missing.
        settings: `inference` and `overlay` are used.
        kinds: of object to be made.
        deidentify: make them without patient data, and number them instead of naming them like their files.

    Returns:
        the content of results.json: one object a file, in their order.

    Raises:
        StoreError: `out` can't be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").touch()
    except OSError as error:
        raise StoreError(f"--out {out}: can't be written ({error.strerror}); name a folder that you may write.") from error
    use_all_cores()
    names = {path: f"image-{number:04d}" for number, path in enumerate(files, start=1)} if deidentify else _names(files)
    order = _Order(load_networks(settings.inference), out, names, settings, kinds, deidentify)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    rows: list[dict[str, Any]] = []
    with Progress(*columns, console=Console(stderr=True), disable=len(files) < 2) as progress:
        task = progress.add_task("Analysing", total=len(files))
        for read in _read_ahead(files, settings.inference.max_batch):
            batch = [(path, _without_patient(source)) for path, source in read] if deidentify else read
            made = _analyze_batch(batch, order)
            for path, row in zip([path for path, _ in batch], made, strict=True):
                rows.append({"source": names[path] if deidentify else str(path), **row})
                if deidentify and row["status"] != "done":
                    rows[-1]["sop_instance_uid"] = ""  # still the source's own
                progress.advance(task)
    (out / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    return rows


def _without_patient(source: Source | Exception) -> Source | Exception:
    if not isinstance(source, Source):
        return source
    if shows_text(source.ds):
        return Rejected("Text is burned into the picture, as its header says, and it may name the patient.")
    return replace(source, ds=deidentified(source.ds), content_digest="")  # nothing that follows from the patient


def _names(files: Sequence[Path]) -> dict[Path, str]:
    """A name for each file's results: its own without suffix, numbered where two are alike."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in files:
        stem = path.name[: -len(path.suffix)] if path.suffix.lower() in _IMAGE_SUFFIXES else path.name
        numbered = (f"{stem}-{number}" for number in itertools.count(2))
        names[path] = next(name for name in itertools.chain([stem], numbered) if name not in taken)
        taken.add(names[path])
    return names


def _read_ahead(files: Sequence[Path], batch_size: int) -> Iterator[list[tuple[Path, Source | Exception]]]:
    """Batches of files with what was read, or why it wasn't; the next batch is read meanwhile."""

    def read(path: Path) -> tuple[Path, Source | Exception]:
        try:
            return path, read_any(path)
        except Exception as error:  # one file costs itself alone
            return path, error

    groups = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    with ThreadPoolExecutor(2) as readers:
        pending = [readers.submit(read, path) for path in groups[0]] if groups else []
        for index in range(len(groups)):
            following = [readers.submit(read, path) for path in groups[index + 1]] if index + 1 < len(groups) else []
            yield [future.result() for future in pending]
            pending = following


def _analyze_batch(batch: Sequence[tuple[Path, Source | Exception]], order: _Order) -> Iterator[dict[str, Any]]:
    networks = order.networks
    readable = [source for _, source in batch if isinstance(source, Source)]
    radiographs = [source.radiograph for source in readable]
    said = [radiograph.geometry.sides_said for radiograph in radiographs]
    outcomes = iter(analyse([radiograph.network_image for radiograph in radiographs], networks, said))
    for path, source in batch:
        if isinstance(source, Rejected):
            yield _row(_uid_of(path), "rejected", source.reasons, networks)
        elif isinstance(source, Exception):
            yield _row("", "failed", (_explain_reading(source),), networks)
        else:
            outcome = next(outcomes)
            uid = str(source.ds.get("SOPInstanceUID", ""))
            if isinstance(outcome, Rejected):
                yield _row(uid, "rejected", outcome.reasons, networks)
            else:
                try:
                    yield _write_results(order.names[path], source, outcome, order)
                except Exception as error:
                    yield _row(uid, "failed", (f"The results couldn't be made: {logs.explain(error)}",), networks)


def _write_results(name: str, source: Source, findings: Findings, order: _Order) -> dict[str, Any]:
    started = time.perf_counter()
    files: dict[str, str] = {}
    now = DUMMY_TIME if order.deidentify else datetime.now(UTC).astimezone()
    overlay = order.settings.overlay
    for item in compose_results(
        *(source.ds, source.radiograph, findings),
        content_digest=source.content_digest,
        kinds=order.kinds,
        overlay=overlay,
        now=now,
    ):
        target = order.out / f"{name}.{item.kind}.dcm"
        target.write_bytes(item.content)
        files[item.kind] = str(target)
        if item.kind == ResultKind.OVERLAY:
            picture = order.out / f"{name}.overlay.png"
            Image.fromarray(pydicom.dcmread(target).pixel_array).save(picture, compress_level=1)
            files["overlay_png"] = str(picture)
    seconds = {"decode": source.decode_s, **findings.seconds, "compose": time.perf_counter() - started}
    seconds["total"] = sum(seconds.values())
    row = _row(str(source.ds.SOPInstanceUID), "done", (), order.networks)
    return {**row, **as_json(findings, seconds, source.radiograph.geometry), "files": files}


def _row(uid: str, status: str, reasons: Sequence[str], networks: Networks) -> dict[str, Any]:
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
        "model": {"name": networks.model.name, "version": networks.model.version},
        "seconds": None,
        "files": {},
    }


def _uid_of(path: Path) -> str:
    """SOP instance UID of a file that was turned away; empty if it has none that can be read."""
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
    return f"The file can't be read: {logs.explain(error)}"
