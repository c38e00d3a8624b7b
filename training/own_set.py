"""One's own radiographs: a folder for each label, or a CSV file that says which file has which label."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from cxr_node.records import LABELS
from training.found import NOT_FRONTAL, Found, LeftOut, visible_files

_KNOWN = (*LABELS, *NOT_FRONTAL)
POPULATIONS = ("adult", "paediatric", "unknown")


def own_set(source: Path) -> Iterator[Found | LeftOut]:
    """Pictures (PNG, JPEG, TIFF or DICOM) of a folder or a CSV file.

    Folder: LABEL/FILE or LABEL/PATIENT/…/FILE. CSV: columns `file` (relative to it) and `label`, and as far as known
    `patient_id`, `population`, `view`, `licence`. What neither says comes from a DICOM file's header. LABEL is one of
    LABELS, or `lateral` and `ct` for pictures that teach the gate what to turn away.
    """
    return _from_csv(source) if source.is_file() else _from_folders(source)


def _from_folders(source: Path) -> Iterator[Found | LeftOut]:
    folders = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
    unknown = [folder.name for folder in folders if folder.name not in _KNOWN]
    if unknown or not folders:
        raise ValueError(
            f"{source} must hold one folder for each label ({', '.join(_KNOWN)}); found: {', '.join(unknown) or 'none'}"
        )
    for folder in folders:
        for path in visible_files(folder):
            inner = path.relative_to(folder).parts
            patient = inner[0] if len(inner) > 1 else ""
            yield Found(path, folder.name, patient)


def _from_csv(source: Path) -> Iterator[Found | LeftOut]:
    with source.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = {"file", "label"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{source} lacks the column(s) {', '.join(sorted(missing))}")
        for line in reader:
            row = {key: (value or "").strip() for key, value in line.items() if key is not None}
            path = source.parent / row["file"]
            if row["label"] not in _KNOWN:
                raise ValueError(f"{source}: label {row['label']!r} of {row['file']} is not one of {', '.join(_KNOWN)}")
            if row.get("population", "") not in ("", *POPULATIONS):
                raise ValueError(f"{source}: population {row['population']!r} is not one of {', '.join(POPULATIONS)}")
            if not path.is_file():
                yield LeftOut(path, "The CSV file names it, but it is not there.")
                continue
            yield Found(
                path,
                row["label"],
                row.get("patient_id", ""),
                row.get("population", ""),
                row.get("view", ""),
                row.get("licence", ""),
            )
