"""`cxr-node demo`: the whole path on this machine, from an emulated modality through the node to a small PACS.

This module starts and stops everything: the node as a process, the PACS as a thread.
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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cxr_node.demo.samples import Sample, as_radiograph, load_samples
from cxr_node.demo.small_pacs import SmallPACS
from cxr_node.demo.summary import compare_with_label, show_summary
from cxr_node.errors import CxrNodeError
from cxr_node.logs import exception_text
from cxr_node.node.supervisor import why_no_web
from cxr_node.prepare.decode import is_dicom
from cxr_node.records import REPORT_CLASS_NAMES, answer_of
from cxr_node.security.printable import printable
from cxr_node.settings import NodeSettings, Settings
from cxr_node.store.database import open_database
from cxr_node.store.views.overview import list_jobs, show_job

_START_TIMEOUT_S, _STOP_TIMEOUT_S, _RESULT_TIMEOUT_S = 300.0, 90.0, 600.0
_RESTING = {"done", "rejected", "held", "cancelled"}
_MARKER = ".cxr-node-demo"


@dataclass(frozen=True)
class SentFile:
    """A file that was sent: what the user named, the instance, and the sample that it is, if it is one."""

    name: str
    path: Path
    sop_instance_uid: str
    number: int
    sample: Sample | None = None


def run_demo(files: Sequence[Path], out: Path, console: Console, report_as: str = "auto", *, keep: bool = False) -> bool:
    """Send files (none: the samples) through a node of its own and show what comes back; True if every one came to its end.

    Args:
        files: DICOM, PNG or JPEG.
        out: folder for everything: what was sent, the node's data, what the PACS received, pictures. Emptied first if
            an earlier demonstration made it.
        console: where progress and results are shown.
        report_as: the destination's setting of that name.
        keep: continue until Ctrl-C, so that the web pages can be used.
    """
    for path in files:
        if not path.is_file():
            raise CxrNodeError(f"{path}: no such file; name DICOM, PNG or JPEG files.")
    _make_folder(out)
    console.print("[bold]cxr-node demonstration[/bold]: AI results, not for primary diagnosis.")
    sent, unreadable = _instances(files, out / "sent")
    for path, reason in unreadable:
        console.print(f"[red]not sent:[/red] {_as_it_is(path)}: {_as_it_is(reason)}", soft_wrap=True)
    if not sent:
        raise CxrNodeError("None of the files can be sent; the reasons are above.")
    if not files:
        console.print(f"No files were named: {len(sent)} real radiographs of the program are sent (cxr_node/demo/samples).")
    with SmallPACS(out / "pacs") as pacs, _node(out, pacs, report_as) as (settings, port, node_says):
        console.print(
            f"PACS {pacs.ae_title} on 127.0.0.1:{pacs.port}, node CXRNODE on 127.0.0.1:{port}, data in {_as_it_is(out)}"
        )
        from cxr_node.demo.modality import send_files

        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(f"sending {len(sent)} radiograph(s) by C-STORE", total=None)
            outcomes = send_files([item.path for item in sent], "127.0.0.1", port, "CXRNODE")
            progress.update(task, description="analysing and delivering")
            jobs = _await_results(settings, progress, task)
        good = not unreadable
        judged = []
        for item, outcome in zip(sent, outcomes, strict=True):
            found = [job for job in jobs if job["sop_instance_uid"] == item.sop_instance_uid]
            if item.sample is not None:
                judged.append(compare_with_label(item.sample, found[0] if found else None))
            if found and outcome.stored:
                good &= _show(item, found[0], pacs, out, console)
            else:
                good = False
                console.rule(_as_it_is(item.name), align="left")
                console.print(
                    _as_it_is(outcome.error) or "No result: it was kept without analysis, or the demonstration timed out."
                )
        if judged:
            show_summary(judged, console)
        _show_page(settings, node_says, console, keep=keep)
    console.print(
        f"Everything is stopped. Pictures: {_as_it_is(out / 'pictures')}." if good else "[red]Something failed, see above."
    )
    return good


def _show_page(settings: Settings, node_says: queue.Queue[bytes], console: Console, *, keep: bool) -> None:
    """With `keep`, say where the page is, and wait there until Ctrl-C."""
    console.rule("the web page", align="left")
    if reason := why_no_web(settings):
        console.print(f"It is not shown. {reason}", markup=False)
        return
    try:
        line = node_says.get(timeout=_START_TIMEOUT_S).decode().strip()
    except queue.Empty:
        line = ""
    if not line:
        console.print("The page was not started; the node's log says why.")
        return
    if not keep:
        console.print("It ran until now. To look at it in a browser: `cxr-node demo --keep`.", markup=False)
        return
    console.print(line.replace("cxr-node serves its web pages at ", ""), soft_wrap=True, markup=False)
    console.print("Open it in a browser on this machine; Ctrl-C ends everything.")
    with suppress(KeyboardInterrupt):
        threading.Event().wait()


def _instances(files: Sequence[Path], folder: Path) -> tuple[list[SentFile], list[tuple[Path, str]]]:
    """The DICOM instances to send (the user's own, or wrapped images, or the samples), and the files that are neither and why."""
    from cxr_node.prepare.wrap_picture import radiograph_from_image

    folder.mkdir(parents=True)
    sent: list[SentFile] = []
    unreadable: list[tuple[Path, str]] = []
    for number, path in enumerate(files, start=1):
        try:
            if is_dicom(path):
                ds = pydicom.dcmread(path, force=True, stop_before_pixels=True)
                sent.append(SentFile(path.name, path, str(ds.get("SOPInstanceUID", "")), number))
                continue
            wrapped = radiograph_from_image(path)
        except Exception as error:  # whatever broken bytes lead the readers to: this file's fault
            unreadable.append((path, exception_text(error)))
            continue
        sent.append(SentFile(path.name, folder / f"{number}-{path.stem}.dcm", str(wrapped.SOPInstanceUID), number))
        wrapped.save_as(sent[-1].path)
    for number, sample in enumerate([] if files else load_samples(), start=1):
        wrapped = as_radiograph(sample)
        sent.append(SentFile(sample.title, folder / f"{sample.name}.dcm", str(wrapped.SOPInstanceUID), number, sample))
        wrapped.save_as(sent[-1].path, enforce_file_format=True)
    return sent, unreadable


def _show(item: SentFile, job: dict[str, Any], pacs: SmallPACS, out: Path, console: Console) -> bool:
    """Print one image's result; True if it is done or rejected."""
    console.rule(_as_it_is(item.name), align="left")
    if job["state"] != "done":
        console.print(f"{job['state']}: {_as_it_is(' '.join(job['reasons']))}")
        return bool(job["state"] == "rejected")
    findings = job["findings"]
    answer, likeliest = answer_of(findings).values()
    console.print(f"answer         [bold]{answer}[/bold]" + (f" (likeliest: {likeliest})" if answer != likeliest else ""))
    for label, value in findings["probabilities"].items():
        console.print(f"  {label:<20} {value:6.3f} {'█' * round(value * 30)}")
    stages = ", ".join(f"{stage} {value:.2f}" for stage, value in findings["seconds"].items() if stage != "total")
    waited = max(delivery["sent_at"] for delivery in job["deliveries"]) - job["created_at"]
    console.print(f"time           {findings['seconds']['total']:.2f} s ({stages})")
    console.print(f"turnaround     {waited:.2f} s from reception to the PACS, including loading the networks")
    for delivery in job["deliveries"]:
        path = pacs.path_of(job["study_instance_uid"], delivery["sent_sop_instance_uid"] or delivery["sop_instance_uid"])
        sent_as = REPORT_CLASS_NAMES.get(pydicom.dcmread(path, specific_tags=["SOPClassUID"]).SOPClassUID, "")
        console.print(f"{delivery['kind']:<14} {_as_it_is(path)}{sent_as and f' ({sent_as})'}", soft_wrap=True)
        if delivery["kind"] == "overlay":
            stem = item.sample.name if item.sample else Path(item.name).stem
            picture = out / "pictures" / f"{item.number}-{stem}.overlay.png"
            picture.parent.mkdir(exist_ok=True)
            Image.fromarray(pydicom.dcmread(path).pixel_array).save(picture)
            console.print(f"{'picture':<14} {_as_it_is(picture)}", soft_wrap=True)
    return True


def _as_it_is(text: object) -> str:
    """Of a name or a reason: [brackets] are no markup, and nothing steers the terminal."""
    return escape(printable(str(text)))


def _await_results(settings: Settings, progress: Progress, task: Any) -> list[dict[str, Any]]:
    """Jobs with results and deliveries, once all have ended or the time limit has passed.

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
def _node(out: Path, pacs: SmallPACS, report_as: str) -> Iterator[tuple[Settings, int, queue.Queue[bytes]]]:
    """A node with default settings on a free port until the block ends; its log is OUT/node.log.

    Gives its settings, its port, and what more it says: where its page is.
    """
    config = out / "cxr-node.toml"
    settings = Settings.model_construct(node=NodeSettings(data_dir=out / "node"))  # nothing from the environment, as below
    config.write_text(
        f"[node]\nport = 0\ndata_dir = {json.dumps(str(out / 'node'), ensure_ascii=False)}\n\n[receive]\nmin_free_mb = 0\n\n"
        f'[[destinations]]\nname = "pacs"\nae_title = "{pacs.ae_title}"\nhost = "127.0.0.1"\nport = {pacs.port}\n'
        f'report_as = "{report_as}"\n\n[web]\nport = 0\n',
        "utf-8",
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CXR_NODE__")}
    with (out / "node.log").open("wb") as node_log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cxr_node", "serve", "--config", str(config)],
            stdout=subprocess.PIPE,
            stderr=node_log,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the demonstration alone, which stops it in order
        )
    try:
        lines = _lines_of(process)
        yield settings, _await_port(lines, out / "node.log"), lines
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _lines_of(process: subprocess.Popen[bytes]) -> queue.Queue[bytes]:
    """What the node prints, line by line; an empty one at its end."""
    lines: queue.Queue[bytes] = queue.Queue()
    assert process.stdout is not None
    stream = process.stdout

    def read() -> None:
        for line in stream:
            lines.put(line)
        lines.put(b"")

    threading.Thread(target=read, daemon=True).start()
    return lines


def _await_port(lines: queue.Queue[bytes], node_log: Path) -> int:
    """The port in the line that the node prints when it is ready."""
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
            raise CxrNodeError(f"{out} is not empty, and not from an earlier demonstration: name another folder with --out.")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARKER).touch()
