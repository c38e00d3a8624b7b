"""`cxr-node demo`: the whole path on this machine, from an emulated modality through the node to a small PACS.

Everything that is started here is stopped here: the node as a process of its own, the PACS as a thread.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from PIL import Image
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cxr_node.errors import CxrNodeError
from cxr_node.logs import explain
from cxr_node.prepare.decode import is_dicom
from cxr_node.receive.small_pacs import SmallPACS
from cxr_node.records import LABELS, REPORT_CLASS_NAMES
from cxr_node.settings import NodeSettings, Settings
from cxr_node.store.database import open_database
from cxr_node.store.overview import list_jobs, show_job

_START_TIMEOUT_S, _STOP_TIMEOUT_S, _RESULT_TIMEOUT_S = 120.0, 90.0, 300.0
_RESTING = {"done", "rejected", "held", "cancelled"}
_MARKER = ".cxr-node-demo"


@dataclass(frozen=True)
class Sent:
    """A file on its way: what the user named, and the instance that was sent for it."""

    name: str
    path: Path
    sop_instance_uid: str
    number: int


def run_demo(files: Sequence[Path], out: Path, console: Console, report_as: str = "auto") -> bool:
    """Send files (none: phantoms) through a node of its own and show what comes back; True if every one came to its end.

    Args:
        files: DICOM, PNG or JPEG.
        out: folder for everything: what was sent, the node's data, what the PACS received, pictures. Emptied first if
            an earlier demonstration made it.
        console: where progress and results are shown.
        report_as: the destination's setting of that name.
    """
    for path in files:
        if not path.is_file():
            raise CxrNodeError(f"{path}: there is no such file; DICOM, PNG and JPEG files can be named.")
    _make_folder(out)
    console.print("[bold]cxr-node demonstration[/bold]: AI results, not for primary diagnosis.")
    sent, unreadable = _instances(files, out / "sent")
    for path, reason in unreadable:
        console.print(f"[red]not sent:[/red] {path}: {reason}", soft_wrap=True)
    if not sent:
        raise CxrNodeError("None of the files can be sent.")
    if not files:
        console.print("No files were named: procedurally drawn [bold]phantoms[/bold] are sent. They show the way, not medicine.")
    with SmallPACS(out / "pacs") as pacs, _node(out, pacs, report_as) as (settings, port):
        console.print(f"PACS {pacs.ae_title} on 127.0.0.1:{pacs.port}, node CXRNODE on 127.0.0.1:{port}, data in {out}")
        from cxr_node.deliver.send import send_files

        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(f"sending {len(sent)} radiograph(s) by C-STORE", total=None)
            outcomes = send_files([item.path for item in sent], "127.0.0.1", port, "CXRNODE")
            progress.update(task, description="analysing and delivering")
            jobs = _await_results(settings, progress, task)
        good = not unreadable
        for item, outcome in zip(sent, outcomes, strict=True):
            found = [job for job in jobs if job["sop_instance_uid"] == item.sop_instance_uid]
            if found and outcome.stored:
                good &= _show(item, found[0], pacs, out, console)
            else:
                good = False
                console.rule(item.name, align="left")
                console.print(outcome.error or "Nothing came back: it was kept and not analysed, or the time was up.")
    console.print(f"Everything was stopped. Look at the pictures in {out / 'pictures'}." if good else "[red]Not all went well.")
    return good


def _instances(files: Sequence[Path], folder: Path) -> tuple[list[Sent], list[tuple[Path, str]]]:
    """The DICOM instances to send (the user's own, or wrapped images, or phantoms), and the files that are neither and why."""
    from cxr_node.emulate import radiograph_from_image
    from cxr_node.phantom import chest_phantom

    folder.mkdir(parents=True)
    sent: list[Sent] = []
    unreadable: list[tuple[Path, str]] = []
    for number, path in enumerate(files, start=1):
        try:
            if is_dicom(path):
                ds = pydicom.dcmread(path, force=True, stop_before_pixels=True)
                sent.append(Sent(path.name, path, str(ds.get("SOPInstanceUID", "")), number))
                continue
            wrapped = radiograph_from_image(path)
        except Exception as error:  # whatever broken bytes lead the readers to: this file's fault
            unreadable.append((path, explain(error)))
            continue
        sent.append(Sent(path.name, folder / f"{number}-{path.stem}.dcm", str(wrapped.SOPInstanceUID), number))
        wrapped.save_as(sent[-1].path)
    if not files:
        for number, (name, finding) in enumerate((("phantom", None), ("phantom-opacity-right", "right")), start=1):
            wrapped = radiograph_from_image(chest_phantom(seed=1, finding=finding))  # type: ignore[arg-type]
            sent.append(Sent(name, folder / f"{name}.dcm", str(wrapped.SOPInstanceUID), number))
            wrapped.save_as(sent[-1].path)
    return sent, unreadable


def _show(item: Sent, job: dict[str, Any], pacs: SmallPACS, out: Path, console: Console) -> bool:
    """Print one image's result; True if it came to a good end."""
    console.rule(item.name, align="left")
    if job["state"] != "done":
        console.print(f"{job['state']}: {' '.join(job['reasons'])}")
        return bool(job["state"] == "rejected")
    findings = job["findings"]
    console.print(f"class          [bold]{findings['label']}[/bold]")
    for label in LABELS:
        value = findings["probabilities"][label]
        console.print(f"  {label:<20} {value:6.3f} {'█' * round(value * 30)}")
    stages = ", ".join(f"{stage} {value:.2f}" for stage, value in findings["seconds"].items() if stage != "total")
    waited = max(delivery["sent_at"] for delivery in job["deliveries"]) - job["created_at"]
    console.print(f"time           {findings['seconds']['total']:.2f} s ({stages})")
    console.print(f"turnaround     {waited:.2f} s from reception to the PACS, the loading of the networks included")
    for delivery in job["deliveries"]:
        path = pacs.path_of(job["study_instance_uid"], delivery["sent_sop_instance_uid"] or delivery["sop_instance_uid"])
        sent_as = REPORT_CLASS_NAMES.get(pydicom.dcmread(path, specific_tags=["SOPClassUID"]).SOPClassUID, "")
        console.print(f"{delivery['kind']:<14} {path}{sent_as and f' ({sent_as})'}", soft_wrap=True)
        if delivery["kind"] == "overlay":
            picture = out / "pictures" / f"{item.number}-{Path(item.name).stem}.overlay.png"
            picture.parent.mkdir(exist_ok=True)
            Image.fromarray(pydicom.dcmread(path).pixel_array).save(picture)
            console.print(f"{'picture':<14} {picture}", soft_wrap=True)
    return True


def _await_results(settings: Settings, progress: Progress, task: Any) -> list[dict[str, Any]]:
    """Jobs with results and deliveries, once all have come to rest or the time is up.

    Their rows are there already: they were committed before the C-STORE responses.
    """
    engine = open_database(settings)
    deadline = time.monotonic() + _RESULT_TIMEOUT_S
    pause = threading.Event()
    try:
        while True:
            jobs = [show for job in list_jobs(engine) if (show := show_job(engine, job["id"])) is not None]
            ended = [
                job
                for job in jobs
                if job["state"] in _RESTING and all(delivery["state"] == "sent" for delivery in job["deliveries"])
            ]
            progress.update(task, description=f"analysing and delivering: {len(ended)} of {len(jobs)}")
            if len(ended) == len(jobs) or time.monotonic() > deadline:
                return ended
            pause.wait(0.1)
    finally:
        engine.dispose()


@contextmanager
def _node(out: Path, pacs: SmallPACS, report_as: str) -> Iterator[tuple[Settings, int]]:
    """A node on the embedded default, serving on a free port until the block ends; its log is OUT/node.log."""
    config = out / "cxr-node.toml"
    settings = Settings.model_construct(node=NodeSettings(data_dir=out / "node"))  # nothing from the environment, as below
    config.write_text(
        f"[node]\nport = 0\ndata_dir = {json.dumps(str(out / 'node'), ensure_ascii=False)}\n\n[receive]\nmin_free_mb = 0\n\n"
        f'[[destinations]]\nname = "pacs"\nae_title = "{pacs.ae_title}"\nhost = "127.0.0.1"\nport = {pacs.port}\n'
        f'report_as = "{report_as}"\n',
        "utf-8",
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CXR_NODE__")}
    with (out / "node.log").open("wb") as node_log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cxr_node", "serve", "--config", str(config)],
            stdout=subprocess.PIPE,
            stderr=node_log,
            env=environment,
        )
    try:
        yield settings, _await_port(process, out / "node.log")
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_port(process: subprocess.Popen[bytes], node_log: Path) -> int:
    """The port in the line that the node prints when it is ready."""
    lines: queue.Queue[bytes] = queue.Queue()
    assert process.stdout is not None
    stream = process.stdout
    threading.Thread(target=lambda: lines.put(stream.readline()), daemon=True).start()
    try:
        line = lines.get(timeout=_START_TIMEOUT_S)
    except queue.Empty:
        line = b""
    if not line.strip():
        raise CxrNodeError(f"The node did not start; {node_log} says why.")
    return int(line.rsplit(b":", 1)[1])


def _make_folder(out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        if not (out / _MARKER).exists():
            raise CxrNodeError(f"{out} is not empty and no earlier demonstration made it: name another folder with --out.")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARKER).touch()
