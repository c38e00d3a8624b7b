"""Builds the manifest and its folder of prepared images from a public set or from one's own radiographs.

OUT then contains manifest.csv (read by `dataset`), images/SOURCE/*.network.png (network images, prepared as in serving),
not_frontal.csv (negatives for the gate), origins.csv (the source file of each image) and import-SOURCE.json (files left out, with
reasons). Several sets can be imported into one OUT, in any order; importing a set again replaces its rows. The manifest contains
hashes of file names and patient numbers; origins.csv and import-SOURCE.json contain the originals.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
from tqdm import tqdm

from cxr_node.errors import Rejected
from cxr_node.records import FindingClass
from training.data.classes import add_classes, classes_of, read_classes
from training.data.dataset import PREPARED_SUFFIX, load_prepared
from training.data.manifest import MANIFEST, NOT_FRONTAL_TABLE, ORIGINS, Row, read_table, write_table
from training.data.own_set import POPULATIONS, own_set
from training.data.patients import Patients, pixel_digest, pseudonym
from training.data.public_sets import copied_from, ieee8023, kermany, radiography_db
from training.data.source_image import NOT_FRONTAL, UNKNOWN_POPULATION, LeftOut, SourceImage, prepare, reasons_of
from training.errors import TrainingError

SETS: dict[str, Callable[[Path], Iterator[SourceImage | LeftOut]]] = {
    "kermany": kermany,
    "ieee8023": ieee8023,
    "radiography-db": radiography_db,
    "folder": own_set,
}


@dataclass(frozen=True)
class _Prepared:
    """A picture that was prepared: `image` is its file, relative to OUT; `patient` is the manifest's name for the patient."""

    found: SourceImage
    image: str
    digest: str
    patient: tuple[str, str]


def import_set(
    kind: str,
    source: Path,
    out: Path,
    name: str = "",
    population: str = "",
    licence: str = "",
    classes: Path | None = None,
) -> dict[str, Any]:
    """Import a set into OUT.

    Args:
        kind: one of SETS.
        source: folder of the download; for `folder` also a CSV file.
        out: folder, made if missing.
        name: what the manifest calls the source; empty: `kind`, for `folder` the folder's name.
        population: of pictures of which neither set nor header says it.
        licence: of pictures of which the set doesn't say it.
        classes: for `folder`: a CSV file that describes labels beyond LABELS; they are added to OUT/classes.csv.

    Returns:
        the report: rows, by_label_and_split, unknown_population, not_frontal, and lists of duplicates and of left_out
        files with their reasons. It is also written to OUT/import-NAME.json.
    """
    name = name or (kind if kind != "folder" else source.resolve().stem)
    if not re.fullmatch(r"[\w .-]+", name) or population not in ("", *POPULATIONS):
        raise TrainingError(f"name {name!r} must be letters, digits, . - _; population {population!r} {', '.join(POPULATIONS)}")
    left_out: list[LeftOut] = []
    prepared: list[_Prepared] = []
    (out / "images" / name).mkdir(parents=True, exist_ok=True)
    if classes is not None:
        add_classes(out, _described(classes))
    found = own_set(source, classes_of(out)) if kind == "folder" else SETS[kind](source)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        work = pool.map(lambda item: _prepared(item, source, out, name, population, licence), list(found))
        for outcome in tqdm(work, desc=name, mininterval=5):
            if isinstance(outcome, LeftOut):
                left_out.append(outcome)
            else:
                prepared.append(outcome)
    if not prepared:
        reasons = "; ".join(sorted({item.reason for item in left_out})[:3]) or "no file looks like one of this set"
        raise TrainingError(f"{source}: nothing to import as {kind} ({reasons})")

    others = [row for row in read_table(out / MANIFEST.file) if row["source"] != name]
    replaced = {row["image"]: row for row in read_table(out / MANIFEST.file) if row["source"] == name}
    kept, duplicates = _unique(prepared, others, out, left_out)
    rows = [
        {
            "image": item.image,
            "mask": replaced.get(item.image, {}).get("mask", ""),
            "label": item.found.label,
            "population": item.found.population,
            "source": name,
            "patient_id": item.patient[1],
            "view": item.found.view,
            "licence": item.found.licence,
            "split": kept.patients.split_of(item.patient),
        }
        for item in kept.frontal
    ]
    origins = {row["image"]: row for row in read_table(out / ORIGINS.file)}
    origins |= {p.image: {"image": p.image, "original": str(p.found.path), "url": p.found.url} for p in kept.all()}
    all_rows, copies = _without_copies(others + rows, origins)
    left_out += [LeftOut(Path(origins[image]["original"]), reason) for image, reason in copies.items()]
    _write(out, name, all_rows, kept.not_frontal, origins)
    _remove_unused(out, name, all_rows)
    report = _report(name, [row for row in all_rows if row["source"] == name], kept.not_frontal, duplicates, left_out)
    (out / f"import-{name}.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return report


def _prepared(
    item: SourceImage | LeftOut, source: Path, out: Path, name: str, population: str, licence: str
) -> _Prepared | LeftOut:
    if isinstance(item, LeftOut):
        return item
    try:
        image, found = prepare(item)
    except (Rejected, OSError) as error:
        return LeftOut(item.path, reasons_of(error))
    if found.population in ("", UNKNOWN_POPULATION):
        found = replace(found, population=population or UNKNOWN_POPULATION)
    found = replace(found, licence=found.licence or licence)
    digest = pixel_digest(image)
    relative = f"images/{name}/{name}-{digest[:12]}{PREPARED_SUFFIX}"
    # two files with the same pixels are written to the same place, perhaps by two threads at once
    temporary = out / f"{relative}.{uuid.uuid4().hex}"
    temporary.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    temporary.replace(out / relative)
    # where nothing names the patient, each picture is one
    patient = found.patient or found.path.relative_to(source if source.is_dir() else source.parent).as_posix()
    return _Prepared(found, relative, digest, (name, pseudonym(name, patient)))


@dataclass(frozen=True)
class _Kept:
    frontal: list[_Prepared]
    not_frontal: list[_Prepared]
    patients: Patients

    def all(self) -> list[_Prepared]:
        return [*self.frontal, *self.not_frontal]


def _unique(
    prepared: Sequence[_Prepared], others: list[Row], out: Path, left_out: list[LeftOut]
) -> tuple[_Kept, list[dict[str, str]]]:
    """Drop pictures whose pixels are there already; patients who share pixels are kept in one split.

    Identical means: identical as the networks see them. A picture that has two labels has none.
    """
    patients = Patients()
    _place_as_said(prepared, patients)
    known: dict[str, tuple[str, str, tuple[str, str]]] = {}  # digest: file, label, patient
    for row in others:
        key = (row["source"], row["patient_id"])
        patients.place(key, row["split"])
        known[pixel_digest(load_prepared(out / row["image"]))] = (row["image"], row["label"], key)
    firsts: dict[str, _Prepared] = {}
    contradicted: set[str] = set()
    duplicates: list[dict[str, str]] = []
    for item in prepared:
        patients.add(item.patient)
        if item.digest in known:
            file, label, patient = known[item.digest]
            patients.join(item.patient, patient)
        elif item.digest in firsts:
            first = firsts[item.digest]
            file, label = str(first.found.path), first.found.label
            patients.join(item.patient, first.patient)
            if label != item.found.label:
                contradicted.add(item.digest)
        else:
            firsts[item.digest] = item
            continue
        if label == item.found.label:
            duplicates.append({"file": str(item.found.path), "same_as": file})
        else:
            left_out.append(LeftOut(item.found.path, f"It is {item.found.label} here, and {label} as {file}."))
    for digest in contradicted:
        first = firsts.pop(digest)
        left_out.append(LeftOut(first.found.path, f"It is {first.found.label} here, and something else under another name."))
    frontal = [item for item in firsts.values() if item.found.label not in NOT_FRONTAL]
    not_frontal = [item for item in firsts.values() if item.found.label in NOT_FRONTAL]
    return _Kept(frontal, not_frontal, patients), duplicates


def _described(path: Path) -> tuple[FindingClass, ...]:
    if not path.is_file():
        raise TrainingError(f"--classes: {path} is not there.")
    return read_classes(path)


def _place_as_said(prepared: Sequence[_Prepared], patients: Patients) -> None:
    """Put patients into the splits that who gave the set wants them in.

    Raises:
        TrainingError: one is wanted in two, or has radiographs in a split and others in none.
    """
    wanted: dict[tuple[str, str], dict[str, Path]] = {}
    for item in prepared:
        wanted.setdefault(item.patient, {}).setdefault(item.found.split, item.found.path)
    for patient, splits in wanted.items():
        if len(splits) > 1:
            told = ", ".join(f"{path.name} in {split or 'none'}" for split, path in sorted(splits.items()))
            raise TrainingError(
                f"One patient is wanted in several splits ({told}): give all radiographs of a patient one `split`."
            )
        (split,) = splits
        if split:
            patients.place(patient, split)


def _without_copies(rows: list[Row], origins: dict[str, Row]) -> tuple[list[Row], dict[str, str]]:
    """Leave out what one set took, resized and renumbered, from another one that is here too.

    Pixels don't show it, and the patient would be in two splits.
    """
    present = {row["source"] for row in rows}
    copies = {}
    for row in rows:
        origin = copied_from(origins.get(row["image"], {}).get("url", ""))
        if origin in present and origin != row["source"]:
            copies[row["image"]] = f"A copy of a picture of {origin}, which is here too."
    return [row for row in rows if row["image"] not in copies], copies


def _write(out: Path, name: str, rows: list[Row], not_frontal: list[_Prepared], origins: dict[str, Row]) -> None:
    write_table(out, MANIFEST, rows)
    others = [row for row in read_table(out / NOT_FRONTAL_TABLE.file) if row["source"] != name]
    own = [
        {
            "image": item.image,
            "kind": item.found.label,
            "source": name,
            "patient_id": item.patient[1],
            "licence": item.found.licence,
        }
        for item in not_frontal
    ]
    if others or own:
        write_table(out, NOT_FRONTAL_TABLE, others + own)
    used = {row["image"] for row in [*rows, *others, *own]}
    write_table(out, ORIGINS, [row for image, row in origins.items() if image in used])


def _remove_unused(out: Path, name: str, rows: list[Row]) -> None:
    """Remove prepared images of this source that no table names any more."""
    used = {row["image"] for row in [*rows, *read_table(out / NOT_FRONTAL_TABLE.file)]}
    for path in (out / "images" / name).glob(f"{name}-*{PREPARED_SUFFIX}"):
        if path.relative_to(out).as_posix() not in used:
            path.unlink()


def _report(
    name: str, rows: list[Row], not_frontal: list[_Prepared], duplicates: list[dict[str, str]], left_out: list[LeftOut]
) -> dict[str, Any]:
    counts = Counter((row["label"], row["split"]) for row in rows)
    return {
        "source": name,
        "rows": len(rows),
        "by_label_and_split": {f"{label} {split}": count for (label, split), count in sorted(counts.items())},
        "unknown_population": sum(row["population"] == UNKNOWN_POPULATION for row in rows),
        "not_frontal": len(not_frontal),
        "duplicates": duplicates,
        "left_out": [{"file": str(item.path), "reason": item.reason} for item in left_out],
    }
