"""The classes of a data folder: those of the shipped weights, and others that its classes.csv describes.

classes.csv has a line for each further class: `label` (as in the manifest), `title` (for people, as the overlay shows it) and
the code that the structured report gives it: `code`, `scheme`, `meaning`, such as 56717001, SCT, Tuberculosis.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cxr_node.records import INDETERMINATE, LABELS, FindingClass
from training.data.evidence_labels import OTHER, UNSPECIFIED
from training.data.manifest import CLASSES, read_table, write_table
from training.errors import TrainingError

_TAKEN = (*LABELS, INDETERMINATE, "not_analysed", "lateral", "ct", OTHER, UNSPECIFIED)
_MOST = {"title": 32, "code": 16, "scheme": 16, "meaning": 64}
"""Characters: what the overlay has room for, and VR SH and LO (PS3.5 section 6.2)."""


def own_classes(folder: Path) -> tuple[FindingClass, ...]:
    """The classes that a folder's classes.csv adds to LABELS; none without that file.

    Raises:
        TrainingError: a line of it can't be used.
    """
    return read_classes(folder / CLASSES.file)


def read_classes(path: Path) -> tuple[FindingClass, ...]:
    """The classes that a CSV file like classes.csv describes; none without that file.

    Raises:
        TrainingError: a line of it can't be used.
    """
    found: dict[str, FindingClass] = {}
    for number, row in enumerate(read_table(path), start=2):
        values = {key: (row.get(key) or "").strip() for key in CLASSES.columns}
        label = values["label"]
        if not re.fullmatch(r"[a-z][a-z0-9_]{1,31}", label) or label in _TAKEN or label in found:
            raise TrainingError(
                f"{path}, line {number}: label {label!r} must be small letters, digits and _, "
                f"and neither there already nor one of {', '.join(_TAKEN)}."
            )
        wrong = [key for key, most in _MOST.items() if not 0 < len(values[key]) <= most]
        if wrong:
            asked = ", ".join(f"{key} (1 to {_MOST[key]} characters)" for key in wrong)
            raise TrainingError(f"{path}, line {number}: {label} needs {asked}.")
        found[label] = FindingClass(label, values["title"], values["code"], values["scheme"], values["meaning"])
    return tuple(found.values())


def classes_of(folder: Path) -> tuple[str, ...]:
    """The labels of a data folder: LABELS, and what its classes.csv adds."""
    return (*LABELS, *(one.name for one in own_classes(folder)))


def add_classes(folder: Path, classes: Sequence[FindingClass]) -> None:
    """Add classes to a folder's classes.csv; one that is there is replaced in its place, so that the order stays."""
    known = {one.name: one for one in own_classes(folder)} | {one.name: one for one in classes}
    rows = [
        {"label": o.name, "title": o.title, "code": o.code_value, "scheme": o.code_scheme, "meaning": o.code_meaning}
        for o in known.values()
    ]
    write_table(folder, CLASSES, rows)


def as_json(classes: Sequence[FindingClass]) -> dict[str, Any]:
    """Classes as `own_classes` of the weights' JSON."""
    return {
        one.name: {
            "title": one.title,
            "code": {"value": one.code_value, "scheme": one.code_scheme, "meaning": one.code_meaning},
        }
        for one in classes
    }
