"""The tables of a data folder on disk: manifest.csv, not_frontal.csv, classes.csv, origins.csv."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

Row = dict[str, str]


@dataclass(frozen=True)
class ManifestTable:
    """A table's file name and its columns, in order."""

    file: str
    columns: tuple[str, ...]


MANIFEST = ManifestTable(
    "manifest.csv",
    ("image", "mask", "fullres", "label", "population", "source", "patient_id", "view", "licence", "split"),
)
NOT_FRONTAL_TABLE = ManifestTable("not_frontal.csv", ("image", "kind", "source", "patient_id", "licence"))
CLASSES = ManifestTable("classes.csv", ("label", "title", "code", "scheme", "meaning"))
ORIGINS = ManifestTable("origins.csv", ("image", "original", "url"))


def read_table(path: Path) -> list[Row]:
    """Rows of a table; none if it isn't there."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def write_table(folder: Path, table: ManifestTable, rows: Iterable[Row]) -> None:
    """Write a table, sorted by image where it has images; columns not given are empty. A crash leaves the old or the new one."""
    temporary = folder / f"{table.file}.tmp"
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, table.columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row.get("image", "")))
    temporary.replace(folder / table.file)
