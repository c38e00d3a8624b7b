"""Your own radiographs: a folder for each label, or a CSV file with the label of each file."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from cxr_node.records import LABELS
from training.data.source_image import NOT_FRONTAL, LeftOut, SourceImage, visible_files
from training.errors import TrainingError

SPLITS = ("train", "val", "test")
POPULATIONS = ("adult", "paediatric", "unknown")


def own_set(source: Path, labels: Sequence[str] = LABELS) -> Iterator[SourceImage | LeftOut]:
    """Pictures (PNG, JPEG, TIFF or DICOM) of a folder or a CSV file.

    Folder: LABEL/FILE or LABEL/PATIENT/…/FILE. CSV: columns `file` (relative to it) and `label`, and as far as known
    `patient_id`, `population`, `view`, `licence` and `split` (train, val or test; the same for all of a patient). What neither
    says comes from a DICOM file's header. LABEL is one of `labels`, or `lateral` and `ct` for pictures that teach the gate
    what to turn away.
    """
    known = (*labels, *NOT_FRONTAL)
    return _from_csv(source, known) if source.is_file() else _from_folders(source, known)


def _from_folders(source: Path, known: Sequence[str]) -> Iterator[SourceImage | LeftOut]:
    folders = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
    unknown = [folder.name for folder in folders if folder.name not in known]
    if unknown or not folders:
        raise TrainingError(
            f"{source} must hold one folder for each label ({', '.join(known)}); found: {', '.join(unknown) or 'none'}. "
            "--classes names a CSV file that describes further labels (training/README.md)."
        )
    for folder in folders:
        for path in visible_files(folder):
            inner = path.relative_to(folder).parts
            patient = inner[0] if len(inner) > 1 else ""
            yield SourceImage(path, folder.name, patient)


def _from_csv(source: Path, known: Sequence[str]) -> Iterator[SourceImage | LeftOut]:
    with source.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = {"file", "label"} - set(reader.fieldnames or ())
        if missing:
            raise TrainingError(f"{source} lacks the column {', '.join(sorted(missing))}: training/README.md shows such a file.")
        for line in reader:
            row = {key: (value or "").strip() for key, value in line.items() if key is not None}
            path = source.parent / row["file"]
            if row["label"] not in known:
                raise TrainingError(
                    f"{source}: label {row['label']!r} of {row['file']} is not one of {', '.join(known)}. "
                    "--classes names a CSV file that describes further ones (training/README.md)."
                )
            if row.get("split", "") not in ("", *SPLITS):
                raise TrainingError(f"{source}: split {row['split']!r} of {row['file']} is not one of {', '.join(SPLITS)}")
            if row.get("population", "") not in ("", *POPULATIONS):
                raise TrainingError(f"{source}: population {row['population']!r} is not one of {', '.join(POPULATIONS)}")
            if not path.is_file():
                yield LeftOut(path, "The CSV file names it, but it is not there.")
                continue
            yield SourceImage(
                path,
                row["label"],
                row.get("patient_id", ""),
                row.get("population", ""),
                row.get("view", ""),
                row.get("licence", ""),
                split=row.get("split", ""),
            )
