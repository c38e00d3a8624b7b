"""A hospital's morning: radiographs from several senders at once to a real node, and its results in a real PACS.

    python -m benchmarks.load [--images 600] [--senders 4] [--seconds 300 0] [--data FOLDER] [--json FILE]

The images are real radiographs of `--data` (drawn phantoms if there are none), wrapped as DX and CR: half of them
full-size (7.8 million pixels, 15.5 MB before compression), half of 1 million (2.1 MB). Each is a patient and a study of
its own. They come at random times spread over so many seconds, over an association each, as from modalities; with 0
seconds all at once, over one association for each sender, as from an archive. Each of the `--seconds` is a run with
`--images` of its own. Senders are processes of their own.

The node is `cxr-node serve` with all its roles; the PACS is Orthanc where it is installed, else the project's small SCP.
Nothing is lost if the PACS, asked once the node has stopped, has exactly one overlay and one report about every image
that was acknowledged: also about one that was rejected, since `[not_analysed]` is on. Exit status 1 if one was lost, or
wasn't taken at all.

Memory is what the processes of a role have for themselves (unique set size), together, once a second.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from pydicom.uid import Comprehensive3DSRStorage, SecondaryCaptureImageStorage

from benchmarks.archives import Archive, archive
from benchmarks.senders import Kind, Sent, kinds_of, send_share
from cxr_node.deliver.request import Peer
from cxr_node.node.supervisor import ROLES
from tests.node import Node

GOALS_MB = {"receive": 150, "work": 2500}
"""Of memory of their own."""
_POLL_S, _WATCH_S, _NOTHING_COMES_S = 0.05, 1.0, 300.0
_BEFORE_THE_FIRST_S = 3.0
"""For the senders to load what they need."""
_RESULTS = {str(SecondaryCaptureImageStorage): "overlay", str(Comprehensive3DSRStorage): "report"}


class Watch(threading.Thread):
    """Notes when instances reach the PACS, and what the node's processes take; until `stop`."""

    def __init__(self, pacs: Archive, node: Node) -> None:
        super().__init__(daemon=True)
        self.arrived: dict[str, float] = {}
        self.last = time.monotonic()
        self.processes: dict[str, list[dict[str, float]]] = defaultdict(list)
        self._pacs, self._node, self._over, self._began = pacs, node, threading.Event(), time.monotonic()

    def run(self) -> None:
        """Until `stop`."""
        due = 0.0
        while not self._over.wait(_POLL_S):
            for name in self._pacs.new():
                self.last = self.arrived[name] = time.monotonic()
            if time.monotonic() >= due:
                due = time.monotonic() + _WATCH_S
                self._measure()

    def stop(self) -> None:
        """Note no more."""
        self._over.set()
        self.join()

    def wait_for(self, count: int) -> None:
        """Until so many have come, or nothing more does."""
        began = time.monotonic()
        while len(self.arrived) < count and time.monotonic() - max(began, self.last) < _NOTHING_COMES_S:
            time.sleep(_POLL_S)

    def _measure(self) -> None:
        for role in ("serve", *ROLES):
            with suppress(psutil.NoSuchProcess, AssertionError):  # it ends, or has just been restarted
                family = self._node.family(role)
                memory = [process.memory_full_info() for process in family]
                self.processes[role].append(
                    {
                        "seconds": round(time.monotonic() - self._began, 1),
                        "processes": len(family),
                        "own_mb": round(sum(item.uss for item in memory) / 1e6, 1),
                        "proportional_mb": round(sum(item.pss for item in memory) / 1e6, 1),
                        "resident_mb": round(sum(item.rss for item in memory) / 1e6, 1),
                        "handles": sum(process.num_fds() for process in family),
                    }
                )


def one_run(
    images: range, seconds: float, how_many_senders: int, kinds: list[Kind], node: Node, watch: Watch, folder: Path
) -> list[Sent]:
    """Send images of these serial numbers, and wait until their results are in the PACS."""
    rng = random.Random(images.start)
    there = len(watch.arrived)
    dues = sorted(rng.uniform(0, seconds) for _ in images)
    plan = [(due, serial % len(kinds), serial) for due, serial in zip(dues, images, strict=True)]
    with ProcessPoolExecutor(how_many_senders, mp_context=multiprocessing.get_context("spawn")) as senders:
        began = time.monotonic() + _BEFORE_THE_FIRST_S
        shares = [
            senders.submit(
                send_share,
                kinds,
                plan[number::how_many_senders],
                began,
                Peer("127.0.0.1", node.port, node.settings.node.ae_title, f"MODALITY{number}", 120.0),
                folder,
                at_once=not seconds,
            )
            for number in range(how_many_senders)
        ]
        sent = [item for share in shares for item in share.result()]
    watch.wait_for(there + 2 * sum(not item.error for item in sent))
    return sent


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and the largest, in seconds."""
    if not values:
        return {}
    found = np.percentile(values, (50, 95, 99, 100))
    return {name: round(float(value), 3) for name, value in zip(("p50", "p95", "p99", "max"), found, strict=True)}


def account(sent: list[Sent], pacs: Archive, arrived: dict[str, float]) -> tuple[list[str], dict[str, float]]:
    """Acknowledged images that haven't exactly one overlay and one report, in words; and when the later of these came."""
    about: dict[str, Counter[str]] = defaultdict(Counter)
    ready: dict[str, float] = {}
    instance_of = {item.study: item.instance for item in sent}
    for name, sop_class, study, references in pacs.objects():
        if study in instance_of and instance_of[study] in references:
            instance = instance_of[study]
            about[instance][_RESULTS.get(sop_class, sop_class)] += 1
            ready[instance] = max(ready.get(instance, 0.0), arrived.get(name, 0.0))
    wanted = {"overlay": 1, "report": 1}
    lost = [
        f"{item.instance}: {dict(about[item.instance]) or 'nothing'}"
        for item in sent
        if not item.error and about[item.instance] != wanted
    ]
    return lost, ready


def measure(options: argparse.Namespace, root: Path, spool: Path) -> dict[str, Any]:
    """All runs on one node."""
    kinds = kinds_of(options.data, spool / "kinds")
    extra = "[not_analysed]\nreport = true\noverlay = true\n"
    with archive(root / "pacs") as pacs:
        node = Node(root / "node", [("pacs", pacs.ae_title, pacs.port)], extra)
        node.start()
        watch = Watch(pacs, node)
        watch.start()
        try:
            first = options.senders
            runs = [one_run(range(first), 0, options.senders, kinds, node, watch, spool)]  # loads what is loaded once
            for seconds in options.seconds:
                images = range(first, first + options.images)
                runs.append(one_run(images, seconds, options.senders, kinds, node, watch, spool))
                first = images.stop
            states = Counter(job["state"] for job in node.jobs())
        finally:
            watch.stop()
            status = node.stop()
        lost, ready = account([item for run in runs for item in run], pacs, watch.arrived)
    found: dict[str, Any] = {
        "pacs": type(pacs).__name__.removesuffix("Archive"),
        "processors": os.cpu_count(),
        "senders": options.senders,
        "sizes_mb": sorted(round(kind.path.stat().st_size / 1e6, 1) for kind in kinds),
        "jobs": dict(states),
        "exit_status": status,
        "lost": lost,
        "refused": [asdict(item) for run in runs for item in run if item.error],
        "runs": [],
        "processes": {
            role: {
                "peak": {name: max(row[name] for row in rows) for name in rows[0] if name != "seconds"},
                "over_time": rows,
            }
            for role, rows in watch.processes.items()
        },
    }
    for seconds, sent in zip(options.seconds, runs[1:], strict=True):
        taken = [item for item in sent if not item.error]
        done = [item for item in taken if item.instance in ready]
        begun = min(item.began for item in sent)
        last = max((ready[item.instance] for item in done), default=begun)
        found["runs"].append(
            {
                "images": len(sent),
                "over_s": seconds,
                "acknowledged": len(taken),
                "response_s": percentiles([item.response_s for item in taken]),
                "turnaround_s": percentiles(
                    [ready[item.instance] - item.acknowledged for item in taken if item.instance in ready]
                ),
                "acknowledged_per_s": round(len(taken) / (max(item.acknowledged for item in sent) - begun), 2),
                "images_per_s": round(len(taken) / (last - begun), 2) if last > begun else 0.0,
            }
        )
    return found


def show(found: dict[str, Any]) -> None:
    """Print it."""

    def in_line(figures: dict[str, float]) -> str:
        return "  ".join(f"{name} {value:.2f}" for name, value in figures.items())

    for run in found["runs"]:
        when = f"over {run['over_s']:g} s" if run["over_s"] else "at once"
        print(f"{run['acknowledged']} of {run['images']} images, {when}")
        print(f"  C-STORE response, s   {in_line(run['response_s'])}")
        print(f"  response to PACS, s   {in_line(run['turnaround_s'])}")
        print(f"  taken {run['acknowledged_per_s']:.2f} images/s, done {run['images_per_s']:.2f} images/s")
    print(f"{'role':<10}{'processes':>10}{'own MB':>10}{'prop. MB':>10}{'resident':>10}{'handles':>10}   (most at any time)")
    for role, figures in found["processes"].items():
        peak = figures["peak"]
        over = f"   over the goal of {GOALS_MB[role]} MB" if peak["own_mb"] > GOALS_MB.get(role, float("inf")) else ""
        columns = ("processes", "own_mb", "proportional_mb", "resident_mb", "handles")
        print(f"{role:<10}" + "".join(f"{peak[name]:>10.0f}" for name in columns) + over)
    print(f"{found['pacs']}; jobs {found['jobs']}; lost {len(found['lost'])}, not taken {len(found['refused'])}")
    for line in [*found["lost"][:10], *(item["error"] for item in found["refused"][:10])]:
        print(f"  {line}")


def main() -> int:
    """Run, print, write the JSON; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=600, help="of each run")
    parser.add_argument("--senders", type=int, default=4)
    parser.add_argument("--seconds", type=float, nargs="+", default=[300.0, 0.0], help="each a run; 0: all at once")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="holds radiographs as fullres/*.jpg")
    parser.add_argument("--folder", type=Path, help="where node and PACS keep what they get (default: the temporary folder)")
    parser.add_argument("--quick", action="store_true", help="few images")
    parser.add_argument("--json", type=Path, default=Path("build/benchmark-load.json"))
    options = parser.parse_args()
    if options.quick:
        options.images, options.seconds = 24, [12.0, 0.0]
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(prefix="cxr-node-load-", dir=options.folder) as root,
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else options.folder) as spool,
    ):
        found = measure(options, Path(root), Path(spool))
    show(found)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if found["lost"] or found["refused"] or found["exit_status"] else 0


if __name__ == "__main__":
    sys.exit(main())
