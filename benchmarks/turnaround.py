"""Time from the C-STORE response until both results are stored in the PACS, and images per second with a backlog.

    python -m benchmarks.turnaround [--images 20] [--waiting 100] [--engine openvino] [--only Orthanc] [--tree CHECKOUT]

A full-size image (2544 × 3056, 12 bit in 16, 15.5 MB) goes through a node in processes of its own to a PACS on the same
machine: Orthanc where it is installed, beside the project's own small SCP. Medians; single images one after the other,
the next when the one before has arrived. Then as many as asked for wait in the queue when the worker starts, and the
rate is taken between the first result and the last, start-up left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2

from cxr_node.demo.modality import send_files
from cxr_node.demo.phantom import chest_phantom
from cxr_node.demo.small_pacs import SmallPACS
from cxr_node.prepare.wrap_picture import radiograph_from_image
from tests.node import Node
from tests.orthanc import Orthanc
from tests.waiting import wait_until

_POLL_S = 0.01


def write_instances(folder: Path, count: int) -> list[Path]:
    """`count` full-size instances of their own UIDs, all showing a phantom."""
    pixels = cv2.resize(chest_phantom(seed=1), (2544, 3056), interpolation=cv2.INTER_CUBIC)
    files = []
    for number in range(count):
        files.append(folder / f"{number}.dcm")
        radiograph_from_image(pixels, uid_seed=f"turnaround-{number}-{time.time_ns()}").save_as(
            files[-1], enforce_file_format=True
        )
    return files


@contextlib.contextmanager
def orthanc_pacs(folder: Path) -> Iterator[tuple[str, int, Callable[[], int]]]:
    """Orthanc: AE title, port, and how many instances it holds."""
    program = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
    with Orthanc(program, folder) as orthanc:
        yield orthanc.ae_title, orthanc.dicom_port, orthanc.count


@contextlib.contextmanager
def small_pacs(folder: Path) -> Iterator[tuple[str, int, Callable[[], int]]]:
    """The project's own SCP, in this process."""
    with SmallPACS(folder) as pacs:
        yield pacs.ae_title, pacs.port, lambda: len(pacs.received)


def wait_for(count: Callable[[], int], expected: int, timeout_s: float) -> None:
    """Poll closely: the wait is what is measured."""
    deadline = time.monotonic() + timeout_s
    while count() < expected:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{count()} of {expected} results after {timeout_s} s")
        time.sleep(_POLL_S)


def make_node(folder: Path, destination: tuple[str, str, int], engine: str, tree: Path | None) -> Node:
    """A node, not yet started, that computes with an engine and sends to a destination: name, AE title, port."""
    return Node(folder, [destination], f'[inference]\nengine = "{engine}"\n', tree=tree)


def single(pacs: Any, root: Path, images: int, engine: str, tree: Path | None) -> dict[str, Any]:
    """Turnaround of single images, and the stages as the node measured them."""
    (root / "sent").mkdir(parents=True)
    files = write_instances(root / "sent", images + 2)
    waits: list[float] = []
    with pacs(root / "pacs") as (ae_title, port, count), make_node(root / "node", ("pacs", ae_title, port), engine, tree) as node:
        for number, file in enumerate(files, start=1):
            (outcome,) = send_files([file], "127.0.0.1", node.port, "CXRNODE")
            acknowledged = time.monotonic()
            assert outcome.stored, outcome
            wait_for(count, 2 * number, 120)
            waits.append(time.monotonic() - acknowledged)
        stages = [job["findings"]["seconds"] for job in node.jobs()][2:]
    waits = waits[2:]  # the first ones warm caches
    return {
        "images": len(waits),
        "median_s": statistics.median(waits),
        "p95_s": sorted(waits)[int(0.95 * (len(waits) - 1))],
        "waits_s": waits,
        "stages_s": stages,
        "stages_median_s": {key: statistics.median(row[key] for row in stages) for key in stages[0]},
    }


def waiting(pacs: Any, root: Path, images: int, engine: str, tree: Path | None) -> dict[str, Any]:
    """Images per second over images that wait: sent while the worker doesn't run, then worked off."""
    (root / "sent").mkdir(parents=True)
    files = write_instances(root / "sent", images)
    with pacs(root / "pacs") as (ae_title, port, count):
        node = make_node(root / "node", ("pacs", ae_title, port), engine, tree)
        node.start("receive")
        outcomes = send_files(files, "127.0.0.1", node.port, "CXRNODE", associations=2)
        assert all(outcome.stored for outcome in outcomes)
        node.stop()
        node.start()
        wait_until(lambda: count() >= 2, "the first image's results")
        begun, first = time.monotonic(), count()
        wait_for(count, 2 * images, 60 + 3 * images)
        seconds = time.monotonic() - begun
        node.stop()
    return {"images": images, "images_per_s": (2 * images - first) / 2 / seconds}


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--waiting", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="few images")
    parser.add_argument("--engine", default="torch", choices=("torch", "openvino"))
    parser.add_argument("--only", choices=("small SCP", "Orthanc"), help="one PACS instead of both")
    parser.add_argument("--tree", type=Path, help="a checkout of another version, whose node is measured")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    images, queued = (3, 8) if options.quick else (options.images, options.waiting)
    pacs = {"small SCP": small_pacs}
    if shutil.which("Orthanc") or Path("/usr/sbin/Orthanc").exists():
        pacs = {"Orthanc": orthanc_pacs, **pacs}
    if options.only:
        pacs = {options.only: pacs[options.only]}
    tree = options.tree.resolve() if options.tree else None
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="cxr-node-turnaround-") as folder:
        for name, kind in pacs.items():
            place = Path(folder) / name.replace(" ", "-")
            found[name] = {
                "single": single(kind, place / "single", images, options.engine, tree),
                "waiting": waiting(kind, place / "waiting", queued, options.engine, tree),
            }
            shutil.rmtree(place)
    for name, figures in found.items():
        one, many = figures["single"], figures["waiting"]
        stages = ", ".join(f"{key} {value:.3f}" for key, value in one["stages_median_s"].items())
        print(f"{name}: median {one['median_s']:.3f} s, p95 {one['p95_s']:.3f} s over {one['images']} images ({stages})")
        print(f"{name}: {many['images_per_s']:.2f} images/s over {many['images']} waiting ones")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
