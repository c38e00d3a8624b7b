"""What the tests of `compose` are made from: a drawn chest, findings with a mark in one lung, and bare source headers."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import Any

import cv2
import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from cxr_node.prepare.network_image import to_network_image
from cxr_node.prepare.radiograph import prepare_dataset
from cxr_node.records import LABELS, SIDES, ZONES, Findings, Geometry, Model, Radiograph
from cxr_node.settings import OverlaySettings

NOW = datetime(2026, 3, 4, 15, 16, 17, 250000, tzinfo=UTC)
MODEL = Model("CXRNet", "1.2.0", "0123456789abcdef" * 4)
SMALL = OverlaySettings(max_side_px=256)
PROBABILITIES = dict(zip(LABELS, (0.0312, 0.8734, 0.0654, 0.03), strict=True))
SIDE = 224
RIGHT_LUNG, LEFT_LUNG = ((120, 70), (82, 40)), ((120, 154), (82, 40))
"""Centre and half axes as (row, column): the patient's right is on the upright image's left."""
MARK = (150, 70)
"""Row and column of the mark's centre: low in the right lung."""

ORIENTATIONS = [("L", "F"), ("R", "F"), ("L", "H"), ("R", "H"), ("F", "L"), ("F", "R"), ("H", "L"), ("H", "R")]
"""Every way that a frontal radiograph can lie."""
KINDS_OF_PIXELS: dict[str, tuple[tuple[int, int], str, dict[str, Any]]] = {
    "wide": ((300, 410), "MONOCHROME2", {}),
    "tall MONOCHROME1": ((512, 301), "MONOCHROME1", {"ImagerPixelSpacing": [0.3, 0.2]}),
    "flat pixels": ((240, 600), "MONOCHROME1", {"PixelAspectRatio": [2, 1]}),
}
"""Rows and columns, photometric interpretation, and what the header says of the pixels' proportions."""


def ellipse(centre: tuple[int, int], axes: tuple[int, int]) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.asarray(((rows - centre[0]) / axes[0]) ** 2 + ((columns - centre[1]) / axes[1]) ** 2 <= 1)


def lungs() -> np.ndarray:
    return np.asarray(ellipse(*RIGHT_LUNG) | ellipse(*LEFT_LUNG))


def heat_at(centre: tuple[int, int], spread: float = 14) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    distance = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2
    return np.asarray(np.exp(-distance / (2 * spread**2)) * lungs(), np.float32)


def findings(**changes: Any) -> Findings:
    values: dict[str, Any] = {
        "label": "bacterial_pneumonia",
        "probabilities": dict(PROBABILITIES),
        "heatmap": heat_at(MARK),
        "lungs": lungs(),
        "right_lung": ellipse(*RIGHT_LUNG),
        "heat_in_lungs": 0.83,
        "heat_by_lung": {"right": 0.9, "left": 0.1},
        "heat_by_zone": dict(zip(itertools.product(SIDES, ZONES), (0.1, 0.5, 0.3, 0.04, 0.05, 0.01), strict=True)),
        "zone_rows": dict.fromkeys(SIDES, (93, 147)),
        "lung_area_fraction": float(lungs().mean()),
        "model": MODEL,
    }
    return Findings(**values | changes)


def upright_chest(rows: int = 640, columns: int = 512) -> np.ndarray:
    """float32 (rows, columns) in 0..1: a bright body with dark lungs."""
    body = np.where(lungs(), np.float32(0.25), np.float32(0.7))
    return cv2.resize(body, (columns, rows), None, 0, 0, cv2.INTER_LINEAR)


def radiograph(
    upright: np.ndarray | None = None, *, transposed: bool = False, down: bool = False, across: bool = False
) -> Radiograph:
    """A radiograph that lies in its source as told; `down` and `across` are the geometry's flips."""
    upright = upright_chest() if upright is None else upright
    pixels = upright[:, ::-1] if across else upright
    pixels = pixels[::-1] if down else pixels
    pixels = np.ascontiguousarray(pixels.T if transposed else pixels)
    return Radiograph(pixels, to_network_image(upright), Geometry(pixels.shape[0], pixels.shape[1], transposed, down, across))


def source(**attributes: Any) -> Dataset:
    """A DX header with the least that reception asks for; attributes are set as given, None leaves one out."""
    values: dict[str, Any] = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1",
        "SOPInstanceUID": "1.2.826.0.1.3680043.8.498.1.3",
        "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.1.1",
        "SeriesInstanceUID": "1.2.826.0.1.3680043.8.498.1.2",
        "Modality": "DX",
        "PatientName": "Test^Radiograph",
        "PatientID": "T-1",
        "PatientBirthDate": "19600229",
        "PatientSex": "F",
        "StudyDate": "20260304",
        "StudyTime": "150000",
        "StudyID": "7",
        "AccessionNumber": "A-77",
        "ReferringPhysicianName": "Ward^Three",
        "SeriesNumber": 2,
        "InstanceNumber": 5,
        "PatientOrientation": ["L", "F"],
        "Manufacturer": "Detector Works",
    }
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword, value in (values | attributes).items():
        if value is not None:
            setattr(ds, keyword, value)
    return ds


def place_of(orientation: tuple[str, str], rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel of a source that lies so, where it is in the upright image: row and column in 0..224.

    Worked out from what PatientOrientation means, and not by the program's own geometry.
    """
    across, down = np.meshgrid((np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows)
    ends = {orientation[0]: across, orientation[1]: down}  # towards this side of the patient the value grows
    towards_left = ends["L"] if "L" in ends else 1 - ends["R"]
    towards_foot = ends["F"] if "F" in ends else 1 - ends["H"]
    return towards_foot * SIDE, towards_left * SIDE


def in_ellipse(orientation: tuple[str, str], shape: tuple[int, int], lung: tuple[Any, Any]) -> np.ndarray:
    """Which pixels of a source that lies so are in a lung."""
    row, column = place_of(orientation, *shape)
    (middle_row, middle_column), (half_height, half_width) = lung
    return np.asarray(((row - middle_row - 0.5) / half_height) ** 2 + ((column - middle_column - 0.5) / half_width) ** 2 <= 1)


def lying(
    orientation: tuple[str, str], shape: tuple[int, int], photometric: str = "MONOCHROME2", **attributes: Any
) -> tuple[Dataset, Radiograph, np.ndarray]:
    """A source that shows the drawn chest, lungs dark; the radiograph that `prepare` makes of it; which pixels are lung."""
    dark = in_ellipse(orientation, shape, RIGHT_LUNG) | in_ellipse(orientation, shape, LEFT_LUNG)
    stored = np.where(dark, 900, 2800).astype(np.uint16) + np.arange(shape[1], dtype=np.uint16) % 97
    if photometric == "MONOCHROME1":
        stored = 4095 - stored
    ds = source(
        **{"PatientOrientation": list(orientation), "Rows": shape[0], "Columns": shape[1], "SamplesPerPixel": 1},
        **{"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0},
        **{"PhotometricInterpretation": photometric, **attributes},
    )
    ds.PixelData = stored.tobytes()
    return ds, prepare_dataset(ds), dark
