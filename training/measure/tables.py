"""Results as readable tables: counts, shares and 95 % intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

_Z = 1.959964
"""Of the standard normal distribution: 95 % lie within."""

NO_FIGURE = "–"


def wilson(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share, from 0 to 1 (Wilson 1927); 0 to 1 where nothing was counted."""
    if not total:
        return 0.0, 1.0
    share, squared = count / total, _Z * _Z / total
    middle = (share + squared / 2) / (1 + squared)
    half = _Z / (1 + squared) * math.sqrt(share * (1 - share) / total + squared / (4 * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def auroc_interval(area: float, positive: int, negative: int) -> tuple[float, float]:
    """The 95 % interval of an area under the ROC curve (Hanley and McNeil 1982, eq. 1).

    Differs: the variance is that of an area half an image away from 0 or 1, where the equation knows no doubt.
    """
    value, fewer = area, min(positive, negative)
    area = (area * fewer + 0.5) / (fewer + 1)
    first, second = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (positive - 1) * (first - area**2) + (negative - 1) * (second - area**2)
    half = _Z * math.sqrt(max(0.0, variance) / (positive * negative))
    return max(0.0, value - half), min(1.0, value + half)


def share(count: int, total: int) -> str:
    """A share with its count and its interval: "12/15 = 80 % (55 to 93)"."""
    if not total:
        return NO_FIGURE
    low, high = wilson(count, total)
    return f"{count}/{total} = {100 * count / total:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def area(value: float | None, positive: int, negative: int) -> str:
    """An AUROC with its interval: "0.91 (0.84 to 0.98)"."""
    if value is None or not positive or not negative:
        return NO_FIGURE
    low, high = auroc_interval(value, positive, negative)
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to the width of the terminal; without one, as wide as it is."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def show_evaluation(figures: Mapping[str, Any], source: str = "") -> None:
    """What `evaluate` measured, as tables."""
    model = figures["model"]
    of = f", {source}" if source else ""
    total = figures["count"]
    rows = []
    for index, (label, one) in enumerate(figures["per_class"].items()):
        there = sum(figures["confusion"][index])
        called = sum(row[index] for row in figures["confusion"])
        right = figures["confusion"][index][index]
        if there or called:
            rows.append([label, str(there), share(right, there), share(right, called), area(one["auroc"], there, total - there)])
    right = sum(row[index] for index, row in enumerate(figures["confusion"]))
    rows.append(["all", str(total), share(right, total), "", ""])
    show(
        f"{model['name']} {model['version']} on {figures['split']}{of}: likeliest class, with 95 % intervals",
        ("class", "images", "of these called so", "of those called so, right", "AUROC"),
        rows,
    )
    given = figures["indeterminate"]
    answered = total - given["count"]
    right = round((given["accuracy"] or 0) * answered)
    rows = [
        ["answered (the rest is indeterminate)", share(answered, total)],
        ["of the answers, right", share(right, answered)],
        ["error of the probabilities (ECE)", f"{figures['calibration']['ece']:.3f}"],
    ]
    covid = figures["adult_covid_vs_healthy"]
    if covid["auroc"] is not None:
        rows.append(["adults, COVID-19 against healthy: AUROC", f"{covid['auroc']:.2f}"])
    if figures["segmentation"]["iou"] is not None:
        rows.append(["lungs: IoU with annotated ones", f"{figures['segmentation']['iou']:.3f}"])
    if figures["gate"]["frontal_accepted"] is not None:
        rows.append(["taken for a frontal chest radiograph", share(round(figures["gate"]["frontal_accepted"] * total), total)])
    show("Answers", ("figure", "value"), rows)


def show_comparison(compared: Mapping[str, Any]) -> None:
    """What `compare.beside` found, as a table."""
    first, second = compared["models"]
    rows = [
        [label, str(one["images"]), share(one["first"], one["images"]), share(one["second"], one["images"])]
        for label, one in compared["by_class"].items()
        if one["images"]
    ]
    total = compared["images"]
    rows.append(["all", str(total), share(compared["first"], total), share(compared["second"], total)])
    show(
        "Both on the same images: likeliest class right, with 95 % intervals",
        ("class", "images", first, second),
        rows,
    )
    print(
        f"Only {first} is right on {compared['only_first']}, only {second} on {compared['only_second']} of {total} images; "
        f"a difference so large or larger comes by chance with p = {compared['p']:.2f} (McNemar, exact)."
    )


def show_import(report: Mapping[str, Any], rows: Sequence[Mapping[str, str]]) -> None:
    """What `import` took, by label and split, and what it left out."""
    images = Counter((row["label"], row["split"]) for row in rows)
    patients = {key: {row["patient_id"] for row in rows if (row["label"], row["split"]) == key} for key in images}
    splits = ("train", "val", "test")
    table = [
        [label, *(f"{images[label, split]} (patients: {len(patients.get((label, split), ()))})" for split in splits)]
        for label in sorted({label for label, _ in images})
    ]
    show(f"{report['source']}: {report['rows']} radiographs", ("label", *splits), table)
    if report["unknown_population"]:
        print(f"Of {report['unknown_population']} nobody says whether they are of adults or children (--population).")
    if report["not_frontal"]:
        print(f"{report['not_frontal']} pictures that are no frontal chest radiograph went to not_frontal.csv.")
    left = Counter(item["reason"] for item in report["left_out"])
    for reason, count in left.most_common(8):
        print(f"Left out, {count}: {reason}")
    if report["duplicates"]:
        print(f"Left out, {len(report['duplicates'])}: the same image is there already.")
    print(f"import-{report['source']}.json names each file that was left out.")
