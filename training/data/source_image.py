"""One picture of a public set or of an export: its label and metadata, and its preparation.

`public_sets` and `own_set` list the pictures of a set; `importer` imports them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from cxr_node.errors import Rejected
from cxr_node.prepare.decode import is_dicom
from cxr_node.prepare.image_file import read_image_file
from cxr_node.prepare.radiograph import prepare_pixels
from cxr_node.prepare.source import read_dicom

NOT_FRONTAL = ("lateral", "ct")
"""Kinds of picture that are no frontal chest radiograph; they teach the gate."""

UNKNOWN_POPULATION = "unknown"
_ADULT_YEARS = 18
_YEARS_BY_UNIT = {"Y": 1.0, "M": 1 / 12, "W": 1 / 52, "D": 1 / 365}


@dataclass(frozen=True)
class SourceImage:
    """A picture in a set.

    path: PNG, JPEG, TIFF or DICOM.
    label: one of LABELS, or of NOT_FRONTAL.
    patient: as the set names the patient; empty where it names none.
    population: adult, paediatric or unknown; empty where the set doesn't say.
    url: where the set has the picture from, if it says so.
    split: train, val or test, where who gives the set says so.
    """

    path: Path
    label: str
    patient: str = ""
    population: str = ""
    view: str = ""
    licence: str = ""
    url: str = ""
    split: str = ""


@dataclass(frozen=True)
class LeftOut:
    """A file of a set that is not imported, and why."""

    path: Path
    reason: str


def visible_files(folder: Path) -> Iterator[Path]:
    """All files below a folder, sorted, without hidden ones and what macOS adds to an archive."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(".") or part == "__MACOSX" for part in parts):
            yield path


def prepare(found: SourceImage) -> tuple[NDArray[np.uint8], SourceImage]:
    """Prepare a picture as serving does.

    Returns:
        uint8 (224, 224), the very array that the node's networks would get; and what was found, completed from the
        header where the set left something open and the picture is DICOM.

    Raises:
        Rejected: serving would turn it away, by its header or its pixels.
        OSError: the file can't be opened.
    """
    if not is_dicom(found.path):
        return prepare_pixels(read_image_file(found.path)).network_image, found
    source = read_dicom(found.path)
    return source.radiograph.network_image, replace(
        found,
        patient=found.patient or str(source.ds.get("PatientID") or "").strip(),
        population=found.population or population_of(source.ds),
        view=found.view or str(source.ds.get("ViewPosition") or "").strip(),
    )


def population_of(ds: Dataset) -> str:
    """Adult, paediatric or unknown, by PatientAge (PS3.5 section 6.2, VR AS), else by the dates of birth and study."""
    match = re.fullmatch(r"\s*(\d{1,3})([DWMY])\s*", str(ds.get("PatientAge") or "").upper())
    if match:
        return population_at(float(match[1]) * _YEARS_BY_UNIT[match[2]])
    born, taken = str(ds.get("PatientBirthDate") or ""), str(ds.get("StudyDate") or "")
    if re.fullmatch(r"\d{8}", born) and re.fullmatch(r"\d{8}", taken) and taken >= born:
        return population_at((int(taken) - int(born)) / 10_000)  # whole years: YYYYMMDD as a number
    return UNKNOWN_POPULATION


def population_at(years: float) -> str:
    """The population that somebody of this age belongs to."""
    return "adult" if years >= _ADULT_YEARS else "paediatric"


def reasons_of(error: Exception) -> str:
    """Why a picture can't be prepared, in one sentence or several."""
    return " ".join(error.reasons) if isinstance(error, Rejected) else f"The file can't be read ({type(error).__name__})."
