"""`python -m tests.faults.soak`: the campaign for minutes or hours, with memory, file handles and threads drawn over time.

In the first half roles are killed at every named place and the PACS is broken in every way, over and over; in the second the
PACS goes on being broken, and what the processes take has to stay flat. Exit status 1 if anything acknowledged is not accounted
for, or something grew. With --remote rows are in PostgreSQL and images and results in an S3 bucket, both of servers of its own.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

import matplotlib
import psutil

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.store.database import open_database
from cxr_node.store.faults import POINTS
from cxr_node.store.views.overview import count_states
from tests.bucket import BucketServer
from tests.conftest import PEERS, REPOSITORY, find_peer
from tests.faults.campaign import ROLES, TROUBLES, BadPACS, Sender, account, campaign_site, inject_faults, renamed
from tests.faults.fault_injection import FaultPoints
from tests.images import chest_phantom
from tests.node import Node
from tests.postgres import Postgres

_EVERY_S = 2.0
_MEASURES = ("memory_mb", "handles", "threads")
_GROWTH, _GROWTH_MB, _GROWTH_COUNT = 1.15, 40, 12
"""How much more the last quarter of the calm half may take than its first: noise of allocators, connections that come and go."""
_MOST_WAITING = 24
_IDLE_POINTS = ("reading", "analysing", "removal-noted")


class Watch(threading.Thread):
    """Measures every role's processes until `stop`; rows of seconds, role, start time, and _MEASURES."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.rows: list[tuple[float, str, float, float, int, int]] = []
        self._node = node
        self._over = threading.Event()
        self._began = time.monotonic()

    def run(self) -> None:
        while not self._over.wait(_EVERY_S):
            for role in ROLES:
                try:
                    family = self._node.family(role)
                    with family[0].oneshot():
                        self.rows.append(
                            (
                                time.monotonic() - self._began,
                                role,
                                family[0].create_time(),
                                sum(process.memory_info().rss for process in family) / 2**20,
                                sum(process.num_fds() for process in family),
                                sum(process.num_threads() for process in family),
                            )
                        )
                except (psutil.NoSuchProcess, AssertionError):  # it has just been killed
                    continue

    def stop(self) -> None:
        """Measure no more."""
        self._over.set()
        self.join()


class Backpressure:
    """Keeps senders from running away from the node: what they leave behind has to be analysed before the end can be judged."""

    def __init__(self, node: Node) -> None:
        self._engine = open_database(node.settings)

    def wait(self, until: float) -> None:
        """Return when few images are waiting, or the time is over."""
        while time.monotonic() < until and count_states(self._engine)["jobs"]["new"] >= _MOST_WAITING:
            time.sleep(0.2)

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()


def keep_sending(
    node: Node, backpressure: Backpressure, pool: list[Path], folder: Path, rng: random.Random, until: float, name: str
) -> Sender:
    """A sender whose images are new ones as long as there is time; see `Sender`."""
    sender = Sender(name, [], node.port)

    def send() -> None:
        number = 0
        while time.monotonic() < until:
            backpressure.wait(until)
            number += 1
            path = renamed(rng.choice(pool), folder / f"{name}-{number}.dcm")
            sender.files = [path]
            sender.send_all()
            path.unlink()

    sender.thread = threading.Thread(target=send)
    sender.thread.start()
    return sender


def flatness(rows: list[tuple[float, str, float, float, int, int]], since: float) -> list[str]:
    """What grew in the time from `since` on, in words; empty if all is flat. Judges the life of each role that lasted longest."""
    grown = []
    for role in ROLES:
        lives: dict[float, list[tuple[float, ...]]] = {}
        for at, name, started, *measures in rows:
            if name == role and at >= since:
                lives.setdefault(started, []).append(tuple(measures))
        longest = max(lives.values(), key=len, default=[])
        quarter = len(longest) // 4
        if quarter < 3:
            grown.append(f"{role}: too short a life to judge; give it more minutes")
            continue
        for place, measure in enumerate(_MEASURES):
            first, last = (fmean(row[place] for row in part) for part in (longest[quarter : 2 * quarter], longest[-quarter:]))
            if last > first * _GROWTH and last > first + (_GROWTH_MB if measure == "memory_mb" else _GROWTH_COUNT):
                grown.append(f"{role}: {measure} grew from {first:.0f} to {last:.0f}")
    return grown


def draw(rows: list[tuple[float, str, float, float, int, int]], calm_since: float, path: Path) -> None:
    """Three panels over time: memory, handles, threads of each role."""
    figure, panels = plt.subplots(3, 1, figsize=(10, 9), sharex=True)
    for place, (panel, measure) in enumerate(zip(panels, _MEASURES, strict=True), start=3):
        for role in ROLES:
            mine = [row for row in rows if row[1] == role]
            panel.plot([row[0] / 60 for row in mine], [float(row[place]) for row in mine], ".", markersize=2, label=role)
        panel.axvline(calm_since / 60, color="grey", linestyle=":")
        panel.set_ylabel(measure.replace("_", " "))
        panel.set_ylim(bottom=0)
    panels[0].legend()
    panels[0].set_title("Left of the dotted line roles are killed; right of it their processes must stay flat")
    panels[-1].set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def break_the_pacs(bad: BadPACS, until: float, over: threading.Event) -> None:
    """Every trouble in turn, with a while of health between."""
    number = 0
    while time.monotonic() < until:
        bad.set(TROUBLES[number % len(TROUBLES)] if number % 2 else "")
        number += 1
        over.wait(min(10.0, max(0.1, until - time.monotonic())))
    bad.set("")


@contextmanager
def remote_settings(wanted: bool, folder: Path) -> Iterator[str]:
    """Settings, in TOML, of a database and a bucket on servers that run meanwhile; empty if they aren't wanted."""
    if not wanted:
        yield ""
        return
    with Postgres(find_peer("initdb")) as postgres, BucketServer(find_peer("moto_server")) as server:
        storage, key = server.settings(), folder / "audit-key.pem"
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
        yield (
            f'[database]\nurl = "{postgres.new_database()}"\n[storage]\nurl = "{storage.url}"\nendpoint = "{storage.endpoint}"\n'
            f'access_key_id = "test"\nsecret_access_key = "hunter2"\n[audit]\nkey = "{key}"\n'
        )


def main() -> int:
    """Run it; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--senders", type=int, default=3)
    parser.add_argument("--images", type=int, default=8, help="different pictures to send, over and over as new instances")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--remote", action="store_true", help="PostgreSQL and a bucket instead of SQLite and the disk")
    parser.add_argument("--out", type=Path, default=Path("test-output/soak"))
    options = parser.parse_args()
    out = options.out.absolute()
    if (out / "node").exists():
        parser.error(f"{out} holds an earlier run: remove it, or name another folder with --out")
    fault_points = FaultPoints(out / "faults")
    os.environ["CXR_NODE_FAULTS"] = str(fault_points.folder)
    rng = random.Random(options.seed)
    pool = _pool(out / "pool", options.images)
    (out / "sending").mkdir()
    program = next(path for path in PEERS["Orthanc"][0] if Path(path).exists() or path == "Orthanc")
    with remote_settings(options.remote, out) as extra, campaign_site(out, program, extra=extra) as (node, orthanc, bad):
        began = time.monotonic()
        half, end = began + options.minutes * 30, began + options.minutes * 60
        watch = Watch(node)
        watch.start()
        backpressure = Backpressure(node)
        senders = [
            keep_sending(node, backpressure, pool, out / "sending", rng, end, f"SENDER{n}") for n in range(options.senders)
        ]
        blows = 0
        while time.monotonic() < half:
            points = tuple(point for point in POINTS if point not in _IDLE_POINTS)
            inject_faults(node, bad, fault_points, points, rng)
            blows += sum(fault_points.struck(point) for point in points)
        fault_points.clear()
        calm_since = time.monotonic() - began
        break_the_pacs(bad, end, threading.Event())
        for sender in senders:
            assert sender.thread is not None
            sender.thread.join()
        backpressure.close()
        watch.stop()
        acknowledged = {uid: study for sender in senders for uid, study in sender.acknowledged.items()}
        node.wait_for_rest(len(acknowledged), 3600)
        states = account(node, orthanc, bad, senders)
    with (out / "processes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("seconds", "role", "started", *_MEASURES))
        writer.writerows(watch.rows)
    draw(watch.rows, calm_since, out / "processes.png")
    grown = flatness(watch.rows, calm_since)
    print(
        f"{len(acknowledged)} images acknowledged, jobs {dict(states)}, struck at {blows} named points; see {out}/processes.png"
    )
    for line in grown:
        print(line)
    return 1 if grown else 0


def _pool(folder: Path, count: int) -> list[Path]:
    """Real radiographs where there are any, else drawn ones."""
    folder.mkdir(parents=True)
    data = Path(os.environ.get("CXR_DATA") or REPOSITORY.parent / "shared" / "data")
    pictures = sorted((data / "fullres").glob("*.jpg"), key=lambda path: path.stat().st_size)[:count]
    files = []
    for number in range(count):
        files.append(folder / f"{number}.dcm")
        image = pictures[number % len(pictures)] if pictures else chest_phantom(seed=number)
        radiograph_from_image(image).save_as(files[-1], enforce_file_format=True)
    return files


if __name__ == "__main__":
    sys.exit(main())
