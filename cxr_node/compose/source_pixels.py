"""Where things lie in the source's own pixel matrix, which is what segmentations and presentation states are drawn on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from cxr_node.compose.identity import value_of
from cxr_node.prepare.geometry import bytes_to_source, mask_to_source
from cxr_node.records import SIDES, Findings, Geometry, Greys

_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


@dataclass(frozen=True)
class SourceMaps:
    """Findings laid onto the source's pixel matrix, each of them once, when it is first asked for."""

    findings: Findings
    geometry: Geometry
    greys: Greys = Greys()  # noqa: RUF009 - frozen

    @cached_property
    def lungs(self) -> NDArray[np.uint8]:
        """uint8 (rows, columns): 1 in the right lung, 2 in the left one, 0 elsewhere; as `Findings` has right and left."""
        sides = (self.findings.right_lung, self.findings.lungs & ~self.findings.right_lung)
        labels = np.zeros((self.geometry.rows, self.geometry.columns), np.uint8)
        for number, lung in enumerate(sides, start=1):
            np.copyto(labels, np.uint8(number), where=mask_to_source(lung, self.geometry))
        return labels

    @cached_property
    def heat(self) -> NDArray[np.uint8]:
        """uint8 (rows, columns): the heat map, 255 where it is 1; 0 outside the lungs."""
        return bytes_to_source(self.findings.heatmap, self.geometry) * (self.lungs > 0)

    def lung(self, side: str) -> NDArray[np.bool_]:
        """One lung of the upright image, bool (224, 224); `side` is one of SIDES."""
        right = self.findings.right_lung
        return right if side == SIDES[0] else self.findings.lungs & ~right


def pixel_spacing_mm(source: Dataset) -> tuple[float, float] | None:
    """Height and width of a source pixel, as far as the header says it sensibly: at the patient, or at the detector."""
    return _pair(source, _SPACINGS)


def pixel_aspect(source: Dataset) -> float:
    """Height of a source pixel by its width; 1 where the header doesn't say, or says nonsense."""
    pair = _pair(source, (*_SPACINGS, "PixelAspectRatio"))
    return pair[0] / pair[1] if pair else 1.0


def _pair(source: Dataset, keywords: tuple[str, ...]) -> tuple[float, float] | None:
    for keyword in keywords:
        try:
            vertical, horizontal = (float(value) for value in value_of(source, keyword))
        except (TypeError, ValueError):
            continue
        if vertical > 0 and horizontal > 0 and 0.2 <= vertical / horizontal <= 5:
            return vertical, horizontal
    return None
