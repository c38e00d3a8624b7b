"""A simulation of 1, 10 and 1,000 hospitals from measured times: hosts, turnaround, database, bucket, and the first bottleneck.

    python -m benchmarks.turnaround --images 20 --waiting 60 --json stages.json
    python -m benchmarks.scale stages.json

Nothing here is a measurement of such a size. Images come by a day's rhythm, as a Poisson process. Each is served by the first
free core of a worker, in order, for as long as one of the measured images took; the rest of the turnaround (claim, delivery) is
drawn from the same measurement. For each size the fewest workers are looked for with which 99 % of the results are in the PACS
within a minute. Before that, the simulation is held against two points of the measurement: the turnaround of single images,
and the rate of a queue. Database, network and bucket are not simulated but reckoned, from the constants below.
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RHYTHM = (2, 1, 1, 1, 1, 2, 4, 8, 10, 10, 9, 8, 7, 8, 8, 7, 6, 5, 4, 4, 3, 3, 2, 2)
"""Weights of the hours of a day: radiography of inpatients and outpatients in the morning, emergencies at night."""
SIZES = {"1 hospital": 10_000, "10 hospitals": 100_000, "1,000 hospitals": 10_000_000}
WITHIN_S = 60.0
CORES = 2
"""Of a worker, which reads, analyses and composes as many images at once: a stage of one while another stage of the next."""

IMAGE_MB = 15.5
TRANSACTIONS_AN_IMAGE = 6
"""Received; claimed (a share of a batch); finished; deliveries claimed; two objects sent."""
AUDIT_ROWS_AN_IMAGE, AUDIT_ROW_KB = 4, 1.0
PUTS_AN_IMAGE, GETS_AN_IMAGE = 3, 3
"""The image and two results are written; the worker reads the image, delivery the results."""
PUT_DOLLARS, GET_DOLLARS, GB_MONTH_DOLLARS = 5e-6, 4e-7, 0.023
"""List prices of one large provider, for the order of magnitude."""
KEPT_DAYS = 14

RECEIVED_A_S = 49.0
"""Of 15.5 MB at one receiving host of two cores, one association: benchmarks/README.md, Reception."""
SQLITE_COMMITS_A_S = 193.0
"""Images received by one association, each a commit: the same table, 2.1 MB."""
POSTGRESQL_COMMITS_A_S = 5000.0
"""Assumed, not measured here: a server of its own with a disk that flushes in 0.2 ms."""
NUMBERS = 2**31
"""Rows that a table of PostgreSQL can number."""


@dataclass(frozen=True)
class Measured:
    """Times of single images, s: of the worker, and of all else until the results are in the PACS."""

    work_s: NDArray[np.float64]
    rest_s: NDArray[np.float64]
    median_s: float
    p95_s: float
    images_a_s: float

    @classmethod
    def of(cls, found: dict[str, Any]) -> Measured:
        """From what benchmarks.turnaround writes with --json, of one PACS."""
        single = found["single"]
        total = np.array([row["total"] for row in single["stages_s"]])
        rest = np.maximum(0.0, np.array(single["waits_s"]) - total)
        return cls(total, rest, single["median_s"], single["p95_s"], found["waiting"]["images_per_s"])


def arrivals(images: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Times of a day, s, at which images come; sorted."""
    weights = np.array(RHYTHM, float)
    counts = random.multinomial(images, weights / weights.sum())
    return np.sort(np.concatenate([3600.0 * (hour + random.random(count)) for hour, count in enumerate(counts)]))


def turnarounds(at: NDArray[np.float64], service_s: Sequence[float], workers: int) -> NDArray[np.float64]:
    """From arrival to the end of the work of each, if the first free of the workers takes the one that came first."""
    free = [0.0] * workers
    done = np.empty(len(at))
    for number, (came, takes) in enumerate(zip(at.tolist(), service_s, strict=True)):
        ends = max(came, free[0]) + takes
        heapq.heapreplace(free, ends)
        done[number] = ends - came
    return done


def check(measured: Measured, random: np.random.Generator) -> list[str]:
    """The simulation beside two points that were measured."""
    apart: NDArray[np.float64] = np.arange(2000, dtype=np.float64) * 60.0
    one = turnarounds(apart, random.choice(measured.work_s, len(apart)).tolist(), 1) + random.choice(measured.rest_s, len(apart))
    queue = np.zeros(2000)
    rate = len(queue) / turnarounds(queue, random.choice(measured.work_s, len(queue)).tolist(), CORES).max()
    points = (
        ("turnaround, median", "s", float(np.median(one)), measured.median_s),
        ("turnaround, p95", "s", float(np.quantile(one, 0.95)), measured.p95_s),
        ("rate of a queue", "images/s", float(rate), measured.images_a_s),
    )
    return [f"| {what} | {ours:.2f} {unit} | {real:.2f} {unit} | {ours / real - 1:+.0%} |" for what, unit, ours, real in points]


def fewest_workers(at: NDArray[np.float64], measured: Measured, random: np.random.Generator) -> tuple[int, float]:
    """How many are needed, and the 99th percentile of the turnaround with so many, s."""
    service = random.choice(measured.work_s, len(at)).tolist()
    rest = random.choice(measured.rest_s, len(at))

    def p99(workers: int) -> float:
        return float(np.quantile(turnarounds(at, service, workers * CORES) + rest, 0.99))

    mean_load = sum(service) / 86400 / CORES
    low, high = max(1, int(mean_load)), max(1, int(mean_load))
    while (found := p99(high)) > WITHIN_S:
        low, high = high, high + max(1, high // 4)
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        if (tried := p99(middle)) > WITHIN_S:
            low = middle
        else:
            high, found = middle, tried
    return high, found


def bottleneck(peak_a_s: float, images: int) -> str:
    """Of what there is only one, what is used most, as a share of what it can."""
    audit_days = NUMBERS / (images * AUDIT_ROWS_AN_IMAGE)
    shares = {
        "SQLite's commits": peak_a_s * TRANSACTIONS_AN_IMAGE / SQLITE_COMMITS_A_S,
        "one receiving host": peak_a_s / RECEIVED_A_S,
        "PostgreSQL's commits": peak_a_s * TRANSACTIONS_AN_IMAGE / POSTGRESQL_COMMITS_A_S,
        f"numbers of the audit log (full after {audit_days:,.0f} days)": 5 * 365 / audit_days,
    }
    broken = [f"{name} ({share:.1f}×)" for name, share in sorted(shares.items(), key=lambda one: -one[1]) if share > 1]
    nearest = max(shares, key=lambda name: shares[name])
    return ", ".join(broken) or f"nothing; nearest: {nearest} ({shares[nearest]:.0%})"


def figures(images: int, measured: Measured, random: np.random.Generator) -> dict[str, str]:
    """What so many images a day take, by its name."""
    workers, p99 = fewest_workers(arrivals(images, random), measured, random)
    peak = images * max(RHYTHM) / sum(RHYTHM) / 3600
    requests = images * (PUTS_AN_IMAGE * PUT_DOLLARS + GETS_AN_IMAGE * GET_DOLLARS)
    kept = images * IMAGE_MB / 1000 * KEPT_DAYS * GB_MONTH_DOLLARS / 30
    return {
        "images a day": f"{images:,}",
        "images/s in the busiest hour": f"{peak:.1f}",
        "workers (2 cores each)": f"{workers:,}",
        "receiving hosts (2 cores each, 70 % used)": f"{-(-peak // (0.7 * RECEIVED_A_S)):.0f}",
        "turnaround, p99": f"{p99:.1f} s",
        "write transactions/s": f"{peak * TRANSACTIONS_AN_IMAGE:,.0f}",
        "audit log a day": f"{images * AUDIT_ROWS_AN_IMAGE * AUDIT_ROW_KB / 1e6:,.2f} GB",
        "network, inwards": f"{peak * IMAGE_MB * 8 / 1000:,.1f} Gbit/s",
        "bucket requests/s": f"{peak * (PUTS_AN_IMAGE + GETS_AN_IMAGE):,.0f}",
        f"bucket a day: requests, {KEPT_DAYS} days of storage": f"${requests:,.2f}, ${kept:,.2f}",
        "breaks, as one of its kind": bottleneck(peak, images),
    }


def main() -> None:
    """Check, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", type=Path, help="what benchmarks.turnaround wrote with --json")
    parser.add_argument("--pacs", default="", help="which PACS of the file; the first")
    parser.add_argument("--largest", type=int, default=max(SIZES.values()), help="leave out larger ones")
    given = parser.parse_args()
    found = json.loads(given.stages.read_text())
    measured = Measured.of(found[given.pacs or next(iter(found))])
    random = np.random.default_rng(1)
    print("| point | simulated | measured | off by |\n|---|---|---|---|")
    print("\n".join(check(measured, random)))
    sizes = {name: images for name, images in SIZES.items() if images <= given.largest}
    columns = [figures(images, measured, random) for images in sizes.values()]
    print(f"\n| | {' | '.join(sizes)} |\n|---|{'---|' * len(sizes)}")
    for name in columns[0]:
        print(f"| {name} | {' | '.join(column[name] for column in columns)} |")


if __name__ == "__main__":
    main()
