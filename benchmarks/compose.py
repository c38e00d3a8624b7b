"""How long the result objects of one radiograph take to compose, and how large they are.

    python -m benchmarks.compose [--rows 3056 --columns 2544] [--repeats 9] [--profile]

A drawn chest stands in for the radiograph; nothing is analysed. Each kind is composed by itself and then all together,
in turns, and the median counts. `processor` is what the process used of all cores: on a machine that does other work it
says more than the clock, so the limits are held against it.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
from collections.abc import Collection
from datetime import UTC, datetime

import cv2
import numpy as np

from cxr_node.analyse.segment import right_and_left, zone_rows
from cxr_node.compose import compose_results
from cxr_node.demo.phantom import chest_phantom
from cxr_node.prepare.radiograph import prepare_dataset
from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.records import ANALYSIS_KINDS, LABELS, SIDES, ZONES, Findings, Model, Radiograph, ResultKind

OVERLAY_LIMIT_S, ALL_LIMIT_S, ALL_LIMIT_BYTES = 0.1, 0.4, 10_000_000


def findings_of(radiograph: Radiograph) -> Findings:
    """Findings with lungs and heat of ordinary size."""
    rows, columns = np.mgrid[: radiograph.network_image.shape[0], : radiograph.network_image.shape[1]].astype(np.float32)
    lungs = np.zeros(rows.shape, np.bool_)
    for middle in (70, 154):
        lungs |= ((rows - 120) / 82) ** 2 + ((columns - middle) / 40) ** 2 <= 1
    right, left = right_and_left(lungs)
    return Findings(
        label=LABELS[1],
        probabilities=dict(zip(LABELS, (0.03, 0.87, 0.07, 0.03), strict=True)),
        heatmap=np.exp(-((rows - 150) ** 2 + (columns - 70) ** 2) / 400) * lungs,
        lungs=lungs,
        right_lung=right,
        heat_in_lungs=0.9,
        heat_by_lung={"right": 0.9, "left": 0.1},
        heat_by_zone={(side, zone): 1 / 6 for side in SIDES for zone in ZONES},
        zone_rows=dict(zip(SIDES, (zone_rows(right), zone_rows(left)), strict=True)),
        lung_area_fraction=float(lungs.mean()),
        model=Model("CXRNet", "0", "0" * 64),
    )


def main() -> None:
    """Measure and print a table; exit status 1 if a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3056)
    parser.add_argument("--columns", type=int, default=2544)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--profile", action="store_true", help="say where the time goes")
    options = parser.parse_args()
    pixels = cv2.resize(chest_phantom(seed=1), (options.columns, options.rows), None, 0, 0, cv2.INTER_LINEAR)
    source = radiograph_from_image(pixels, uid_seed="benchmark")
    radiograph = prepare_dataset(source)
    findings = findings_of(radiograph)
    runs: dict[str, Collection[ResultKind]] = {str(kind): (kind,) for kind in ANALYSIS_KINDS}
    runs["overlay and report"] = (ResultKind.OVERLAY, ResultKind.REPORT)
    runs["all"] = ANALYSIS_KINDS
    clock: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    sizes: dict[str, int] = {}
    profile = cProfile.Profile()
    for turn in range(options.repeats + 1):  # the first loads what is loaded once
        for name, kinds in runs.items():
            if options.profile and turn:
                profile.enable()
            began, began_processor = time.perf_counter(), time.process_time()
            made = compose_results(source, radiograph, findings, content_digest="0" * 64, kinds=kinds, now=datetime.now(UTC))
            if turn:
                clock[name].append(time.perf_counter() - began)
                processor[name].append(time.process_time() - began_processor)
            profile.disable()
            sizes[name] = sum(len(item.content) for item in made)
    print(f"{options.rows} x {options.columns}, median of {options.repeats}")
    print(f"{'':<20}{'clock ms':>10}{'best ms':>10}{'processor ms':>14}{'MB':>8}")
    for name in runs:
        times = (statistics.median(clock[name]), min(clock[name]), statistics.median(processor[name]))
        print(
            f"{name:<20}" + "".join(f"{1000 * value:>{width}.0f}" for value, width in zip(times, (10, 10, 14), strict=True)),
            end="",
        )
        print(f"{sizes[name] / 1e6:>8.2f}")
    if options.profile:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(45)
    overlay_s, all_s = statistics.median(processor["overlay"]), statistics.median(processor["all"])
    if overlay_s > OVERLAY_LIMIT_S or all_s > ALL_LIMIT_S or sizes["all"] > ALL_LIMIT_BYTES:
        raise SystemExit(
            f"over a limit: {OVERLAY_LIMIT_S:g} s for the overlay, {ALL_LIMIT_S:g} s and {ALL_LIMIT_BYTES / 1e6:g} MB for all"
        )


if __name__ == "__main__":
    main()
