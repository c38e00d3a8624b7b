"""Response times of the web pages on a large database, memory of the role `web`, and its effect on reception.

    python -m benchmarks.web                             # SQLite
    python -m benchmarks.web --database-url postgresql+psycopg://…
    python -m benchmarks.web --jobs 5000 --audit 50000 --seconds 5   # a short form

A database of so many jobs and audit rows is filled; the role `web` runs on it as a process of its own, and so many browsers,
each a session, ask one after the other for the overview, a search and the metrics. Then images are sent to the role `receive`
for a while, with the browsers and without, in turns. Targets: overview 200 ms and search 300 ms at the 95th percentile, 150 MB,
and at most 5 % of reception.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx2
import psutil
from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.sop_class import DigitalXRayImageStorageForPresentation  # type: ignore[attr-defined]
from sqlalchemy import Engine, func, insert, select

from cxr_node.demo.phantom import chest_phantom
from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.settings import load_settings
from cxr_node.store.accounts import users
from cxr_node.store.copying import set_sequences
from cxr_node.store.database import open_database, write
from cxr_node.store.schema import audit, deliveries, instances, jobs, results

_CHUNK = 5000
_PER_STUDY = 2


def fill(engine: Engine, job_count: int, audit_count: int) -> None:
    """Jobs over the last 30 days, each with two results that were sent, and rows of the audit log."""
    now = time.time()
    step_s = 30 * 86400 / job_count
    findings = {"answer": "healthy", "likeliest": "healthy", "label": "healthy", "probabilities": {"healthy": 0.9}}
    findings |= {"seconds": {"decode": 0.1, "segment": 0.2, "classify": 0.3, "total": 0.7}, "warnings": []}
    for first in range(1, job_count + 1, _CHUNK):
        numbers = range(first, min(first + _CHUNK, job_count + 1))
        with write(engine) as connection:
            at = {number: now - (job_count - number) * step_s - 60 for number in numbers}
            connection.execute(insert(instances), [_instance(number, at[number]) for number in numbers])
            connection.execute(insert(jobs), [_job(number, at[number], json.dumps(findings)) for number in numbers])
            connection.execute(
                insert(results), [_result(2 * number + n, number, at[number]) for number in numbers for n in (0, 1)]
            )
            connection.execute(insert(deliveries), [_delivery(2 * number + n, at[number]) for number in numbers for n in (0, 1)])
    for first in range(0, audit_count, _CHUNK):
        rows = [
            _event(number, now - (audit_count - number) * 30 * 86400 / audit_count) for number in range(first, first + _CHUNK)
        ]
        with write(engine) as connection:
            connection.execute(insert(audit), rows)
    if engine.dialect.name == "postgresql":
        with write(engine) as connection:
            set_sequences(connection)


def _instance(number: int, at: float) -> dict[str, Any]:
    study = number // _PER_STUDY
    return {
        **{"id": number, "sop_instance_uid": f"2.25.{number}", "revision": 0, "digest": f"d{number}", "size_bytes": 8_000_000},
        **{"path": f"instances/{number}.dcm", "sop_class_uid": "1.2.840.10008.5.1.4.1.1.1.1"},
        **{"transfer_syntax_uid": "1.2.840.10008.1.2.1", "study_instance_uid": f"2.25.1.{study}"},
        **{"series_instance_uid": f"2.25.2.{study}", "patient_id": f"P{study % 40000}", "accession_number": f"A{study}"},
        **{
            "calling_ae_title": f"DX{number % 6}",
            "called_ae_title": "CXRNODE",
            "host": "10.0.0.1",
            "received_at": at,
            "note": "",
        },
    }


def _job(number: int, at: float, findings: str) -> dict[str, Any]:
    return {
        **{"id": number, "instance_id": number, "state": "held" if number % 5000 == 0 else "done", "priority": 0, "attempts": 1},
        **{"not_before": 0.0, "lease_owner": "", "lease_until": 0.0, "reasons": "[]", "findings": findings},
        **{"model_version": "1", "created_at": at, "finished_at": at + 3},
    }


def _result(number: int, job: int, at: float) -> dict[str, Any]:
    return {
        **{"id": number, "job_id": job, "kind": "report" if number % 2 else "overlay", "sop_instance_uid": f"2.25.9.{number}"},
        **{"sop_class_uid": "1.2", "transfer_syntax_uid": "1.2.840.10008.1.2.1", "path": f"results/{number}.dcm"},
        **{"size_bytes": 1000, "created_at": at + 3},
    }


def _delivery(number: int, at: float) -> dict[str, Any]:
    return {
        **{"result_id": number, "destination": "pacs", "state": "sent", "attempts": 1, "not_before": 0.0, "lease_owner": ""},
        **{"lease_until": 0.0, "status": 0, "reason": "", "created_at": at + 3, "sent_at": at + 5},
    }


def _event(number: int, at: float) -> dict[str, Any]:
    return {
        **{"at": at, "event": ("instance-received", "job-done", "result-sent")[number % 3], "outcome": "success"},
        **{"user": f"DX{number % 6}", "host": "10.0.0.1", "patient_id": f"P{number % 40000}"},
        **{"study_instance_uid": f"2.25.1.{number % 50000}", "sop_instance_uid": f"2.25.{number % 100000}", "detail": ""},
    }


@contextmanager
def role(name: str, config: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A role as a process, and the line that it prints when it is ready."""
    command = [sys.executable, "-m", "cxr_node", name, "--config", str(config)]
    with config.with_name(f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().decode()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


class Browsers:
    """So many, each with a session, that ask for the paths in turn, with a pause as people make, until the block ends."""

    def __init__(self, engine: Engine, address: str, count: int, paths: list[str], pause_s: float) -> None:
        self._cookies = [users.begin_session(engine, "bench", "admin", "oidc", 86400) for _ in range(count)]
        self._address, self._paths, self._pause_s = address, paths, pause_s
        self._stop = threading.Event()
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.failures: list[str] = []

    def __enter__(self) -> Browsers:
        self._pool = ThreadPoolExecutor(len(self._cookies))
        for number, cookie in enumerate(self._cookies):
            self._pool.submit(self._browse, number, cookie)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()

    def _browse(self, number: int, cookie: str) -> None:
        with httpx2.Client(base_url=self._address, cookies={"cxr-node": cookie}, timeout=60) as client:
            self._stop.wait(self._pause_s * number / len(self._cookies))
            turn = number
            while not self._stop.is_set():
                path = self._paths[turn % len(self._paths)].replace("{n}", str(turn % 40000))
                started = time.perf_counter()
                answer = client.get(path)
                self.seconds[path.partition("?")[0]].append(time.perf_counter() - started)
                if answer.status_code != 200:
                    self.failures.append(f"{path}: {answer.status_code}")
                turn += 7
                self._stop.wait(self._pause_s)


def receive_rate(port: int, seconds: float) -> float:
    """Images a second over one association that sends without a pause."""
    ae = AE("BENCH")
    ae.dimse_timeout = 60
    ae.add_requested_context(DigitalXRayImageStorageForPresentation)
    assoc = ae.associate("127.0.0.1", port, ae_title="CXRNODE")
    if not assoc.is_established:
        raise SystemExit("The role receive takes no association.")
    ds, count, ends_at = radiograph_from_image(chest_phantom(seed=1)), 0, time.monotonic() + seconds
    slowest_s = 0.0
    while time.monotonic() < ends_at:
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID(f"2.25.{time.time_ns()}")
        started = time.monotonic()
        status = assoc.send_c_store(ds).get("Status")
        slowest_s = max(slowest_s, time.monotonic() - started)
        if status != 0:
            raise SystemExit(f"An image was not stored, after {slowest_s:.1f} s: status {status}.")
        count += 1
    assoc.release()
    return count / seconds


def main() -> None:
    """Fill, ask, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--audit", type=int, default=1_000_000)
    parser.add_argument("--browsers", type=int, default=20)
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between what one browser asks for")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each part")
    parser.add_argument("--turns", type=int, default=3, help="of reception, with the browsers and without; 0: none")
    parser.add_argument("--database-url", default="")
    parser.add_argument("--folder", type=Path, help="for the database, which is kept and used again; without: a temporary one")
    parser.add_argument("--paths", nargs="*", default=["/overview", "/studies?patient=P{n}", "/audit?patient=P{n}", "/metrics"])
    given = parser.parse_args()
    with ExitStack() as held:
        folder = given.folder or Path(held.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        config = Path(folder, "cxr-node.toml")
        config.write_text(
            f'[node]\nport = 0\ndata_dir = "{folder}/var"\n[database]\nurl = "{given.database_url}"\n[receive]\nmin_free_mb = 0\n'
            '[web]\nport = 0\n[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = 11113\n'
        )
        engine = open_database(load_settings(config))
        started = time.monotonic()
        with engine.connect() as connection:
            is_filled = (connection.execute(select(func.max(audit.c.id))).scalar() or 0) >= given.audit
        if not is_filled:
            fill(engine, given.jobs, given.audit)
        print(
            f"{given.jobs} jobs, {given.audit} audit rows, filled in {time.monotonic() - started:.0f} s; {os.cpu_count()} cores"
        )
        if not is_filled:
            users.add(engine, "somebody", "viewer", "-", "bench")  # so that no one-time link is asked for
        measure(given, config, engine)
        engine.dispose()


def measure(given: argparse.Namespace, config: Path, engine: Engine) -> None:
    """The page alone, then reception with and without it."""
    with role("web", config) as (web, line):
        address = line.split(" at ")[1].split()[0].rstrip("/")
        httpx2.get(f"{address}/metrics", timeout=120)  # the first counts all that there is
        memory = psutil.Process(web.pid)
        with Browsers(engine, address, given.browsers, given.paths, given.pause) as browsers:
            time.sleep(given.pause)  # their first pages open their connections
            browsers.seconds.clear()
            time.sleep(given.seconds)
            resident_mb, own_mb = memory.memory_full_info().rss / 1e6, memory.memory_full_info().uss / 1e6
        for path, seconds in sorted(browsers.seconds.items()):
            p95 = quantiles(seconds, n=20)[-1] if len(seconds) > 1 else seconds[0]
            print(f"{path:<12} {len(seconds):>5} answers   median {median(seconds) * 1000:6.0f} ms   p95 {p95 * 1000:6.0f} ms")
        failures = ", ".join(browsers.failures[:5]) or "none"
        print(f"web takes {resident_mb:.0f} MB, {own_mb:.0f} of them its own; failures: {failures}")
        if not given.turns:
            return
        with role("receive", config) as (_, ready), ExitStack() as held:
            port = int(ready.strip().rsplit(":", 1)[1])
            sender = held.enter_context(ProcessPoolExecutor(1, get_context("spawn")))  # the browsers don't hold its lock

            def rate(seconds: float) -> float:
                return sender.submit(receive_rate, port, seconds).result()

            rate(min(2.0, given.seconds))
            alone, beside = [], []
            for _ in range(given.turns):
                alone.append(rate(given.seconds / given.turns))
                with Browsers(engine, address, given.browsers, given.paths, given.pause):
                    beside.append(rate(given.seconds / given.turns))
        lost = 1 - median(beside) / median(alone)
        print(f"reception alone {median(alone):.1f}/s, with {given.browsers} browsers {median(beside):.1f}/s: {lost:.1%} lost")


if __name__ == "__main__":
    main()
