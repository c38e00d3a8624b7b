"""Findings in the source's pixel matrix, on which segmentations and presentation states are drawn."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit
from pydicom.valuerep import format_number_as_ds

from cxr_node.prepare.geometry import bytes_to_source, mask_to_source
from cxr_node.prepare.header import numbers, text, values_of
from cxr_node.records import SIDES, Findings, Geometry, Greys

_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


@dataclass(frozen=True)
class SourceMaps:
    """Findings mapped to the source's pixel matrix, each once, on first use."""

    findings: Findings
    geometry: Geometry
    greys: Greys = Greys()  # noqa: RUF009 - frozen

    @cached_property
    def lungs(self) -> NDArray[np.uint8]:
        """uint8 (rows, columns): 1 in the right lung, 2 in the left one, 0 elsewhere; as `Findings` has right and left."""
        right, left = (mask_to_source(self.lung(side), self.geometry).view(np.uint8) for side in SIDES)
        return np.asarray(np.maximum(right, left * np.uint8(2)), np.uint8)

    @cached_property
    def heat(self) -> NDArray[np.uint8]:
        """uint8 (rows, columns): the heat map, 255 where it is 1; 0 outside the lungs."""
        return bytes_to_source(self.findings.heatmap, self.geometry) * (self.lungs > 0).view(np.uint8)

    def lung(self, side: str) -> NDArray[np.bool_]:
        """One lung of the upright image, bool (224, 224); `side` is one of SIDES."""
        right = self.findings.right_lung
        return right if side == SIDES[0] else self.findings.lungs & ~right


def pixel_spacing_mm(source: Dataset) -> tuple[float, float] | None:
    """Height and width of a source pixel if the header has plausible values: at the patient, or at the detector."""
    return _pair(source, _SPACINGS)


def pixel_aspect(source: Dataset) -> float:
    """Height of a source pixel by its width; 1 if the header has none, or an implausible one."""
    pair = _pair(source, (*_SPACINGS, "PixelAspectRatio"))
    return pair[0] / pair[1] if pair else 1.0


def compression_of(source: Dataset) -> dict[str, Any]:
    """Attributes of lossy compression: results of a source that was compressed with losses say so too (PS3.3 C.7.6.1.1.5)."""
    flag = text(source, "LossyImageCompression")
    file_meta = getattr(source, "file_meta", None)
    if file_meta is not None and file_meta.get("TransferSyntaxUID") in (JPEGBaseline8Bit, JPEGExtended12Bit):
        flag = "01"
    if flag not in ("00", "01"):
        return {}
    found: dict[str, Any] = {"LossyImageCompression": flag}
    if flag == "01":
        ratios = [format_number_as_ds(value) for value in numbers(source, "LossyImageCompressionRatio") if value and value >= 1]
        methods = [str(value) for value in values_of(source, "LossyImageCompressionMethod")]
        if ratios:
            found["LossyImageCompressionRatio"] = ratios
        if methods and all(re.fullmatch("[A-Z0-9_ ]{1,16}", method) for method in methods):
            found["LossyImageCompressionMethod"] = methods
    return found


def _pair(source: Dataset, keywords: tuple[str, ...]) -> tuple[float, float] | None:
    for keyword in keywords:
        found = [value for value in numbers(source, keyword) if value is not None]
        if len(found) != 2:
            continue
        vertical, horizontal = found
        if vertical > 0 and horizontal > 0 and 0.2 <= vertical / horizontal <= 5:
            return vertical, horizontal
    return None
