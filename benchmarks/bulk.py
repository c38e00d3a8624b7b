"""Many files at once: the plain command beside Ray on this machine, and what becomes of the files when hosts go.

    python -m benchmarks.bulk --images 60                     # both in turns; the goal is within 15 % of each other
    python -m benchmarks.bulk --images 60 --files FOLDER      # of real pictures or DICOM files
    python -m benchmarks.bulk --kill --images 40              # two hosts of a local cluster, killed in turn

Phantoms of 2544 × 3056 in 16 bit, or copies of the files in FOLDER. Seconds are those of the whole command, starting included,
and of the analysis alone: from the first file that is through to the last.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.turnaround import write_instances


def run(engine: str, folder: Path, out: Path, address: str = "") -> tuple[float, float]:
    """Seconds of the command, and images a second between the first file and the last."""
    command = [sys.executable, "-m", "cxr_node", "analyze", str(folder), "--engine", engine, "--out", str(out), "--json"]
    started = time.monotonic()
    finished: list[float] = []
    watcher = threading.Event()

    def watch() -> None:
        while not watcher.wait(0.05):
            count = sum(1 for _ in out.rglob("*.report.dcm")) if out.is_dir() else 0
            finished.extend([time.monotonic()] * (count - len(finished)))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "RAY_ADDRESS": address})
    finally:
        watcher.set()
        thread.join()
    if done.returncode:
        raise SystemExit(f"{engine}: {done.stderr[-2000:]}")
    return time.monotonic() - started, (len(finished) - 1) / (finished[-1] - finished[0])


def write_sources(folder: Path, count: int, files: Path | None) -> None:
    """So many files to analyse: phantoms, or the files of a folder, as often as it takes."""
    folder.mkdir()
    if files is None:
        write_instances(folder, count)
        return
    found = sorted(path for path in files.iterdir() if path.is_file())
    if not found:
        raise SystemExit(f"{files} holds no file.")
    for number in range(count):
        source = found[number % len(found)]
        shutil.copyfile(source, folder / f"{number:05d}{source.suffix}")


def side_by_side(images: int, turns: int, files: Path | None) -> None:
    """Both engines in turns."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "in")
        write_sources(folder, images, files)
        found: dict[str, list[tuple[float, float]]] = {"plain": [], "ray": []}
        for turn in range(turns):
            for engine, rows in found.items():
                rows.append(run(engine, folder, Path(root, f"{engine}-{turn}")))
    for engine, rows in found.items():
        seconds, rate = median(row[0] for row in rows), median(row[1] for row in rows)
        print(f"{engine:<6} {images} images   the command {seconds:6.1f} s   {rate:5.2f} images/s once it runs")
    ratio = median(row[1] for row in found["ray"]) / median(row[1] for row in found["plain"])
    print(f"Ray does {ratio:.2f} times as many images a second")


def kill_in_turn(images: int, *, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Analyse on two hosts of a local cluster: each is killed in turn, and another comes in its place."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # as the command sets it for a cluster of its own
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    hosts = [cluster.add_node(num_cpus=1) for _ in range(2)]
    with tempfile.TemporaryDirectory() as root:
        folder, out = Path(root, "in"), Path(root, "out")
        write_sources(folder, images, None)

        command = threading.Thread(target=run, args=("ray", folder, out, cluster.address))

        def wait_for(count: int) -> None:
            while command.is_alive() and sum(1 for _ in out.rglob("*.report.dcm")) < count:
                time.sleep(0.1)

        killed = 0
        command.start()
        try:
            for host, share in ((hosts[0], 4), (hosts[1], 2)):
                wait_for(images // share)
                if command.is_alive():
                    cluster.remove_node(host, allow_graceful=False)
                    killed += 1
                    say(f"host {killed} is killed")
                    cluster.add_node(num_cpus=1)  # only the main thread may: Ray sets a handler for a signal
            command.join()
        finally:
            ray.shutdown()
            cluster.shutdown()  # type: ignore[no-untyped-call]
        rows = [json.loads(line) for line in (out / "progress.jsonl").read_text().splitlines()[1:]]
        files = sum(1 for _ in out.rglob("*.report.dcm"))
    counted = Counter(row["source"] for row in rows)
    found = {
        "files": images,
        "done": sum(row["status"] == "done" for row in rows),
        "twice": sum(count > 1 for count in counted.values()),
        "reports": files,
        "hosts killed": killed,
    }
    say(json.dumps(found))
    return found


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--files", type=Path, help="a folder of real files")
    parser.add_argument("--kill", action="store_true", help="kill two hosts in turn, and count")
    given = parser.parse_args()
    if given.kill:
        found = kill_in_turn(given.images)
        if not found["files"] == found["done"] == found["reports"] or found["twice"] or found["hosts killed"] < 2:
            raise SystemExit("Not every file is there once.")
    else:
        side_by_side(given.images, given.turns, given.files)


if __name__ == "__main__":
    main()
