"""Regions of the report on the source image: closed polylines in its pixel matrix."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from cxr_node.compose import content_items as items
from cxr_node.compose.codes import concept
from cxr_node.prepare.geometry import to_source
from cxr_node.records import Geometry


def lung_rectangle(lungs: NDArray[np.bool_], geometry: Geometry) -> NDArray[np.float64]:
    """The rectangle around the lungs in the source's pixel matrix, as a closed polyline.

    Args:
        lungs: bool (H, W), upright.
        geometry: of the source.

    Returns:
        float64 (5, 2): column, row, from (0, 0) at the outer corner of the first pixel (PS3.3 C.18.6.1.1); around the
        whole image if the mask is empty.
    """
    placed = to_source(lungs.astype(np.float32), geometry, shape=lungs.shape) >= 0.5
    rows, columns = np.flatnonzero(placed.any(axis=1)), np.flatnonzero(placed.any(axis=0))
    top, bottom, left, right = 0.0, 1.0, 0.0, 1.0
    if rows.size:
        height, width = placed.shape
        top, bottom = float(rows[0] / height), float((rows[-1] + 1) / height)
        left, right = float(columns[0] / width), float((columns[-1] + 1) / width)
    corners = ((left, top), (right, top), (right, bottom), (left, bottom), (left, top))
    return np.array([(x * geometry.columns, y * geometry.rows) for x, y in corners], np.float64)


def area_of(outline: NDArray[np.float64]) -> float:
    """The area within a closed polyline, float64 (N, 2)."""
    x, y = outline[:, 0], outline[:, 1]
    return float(abs((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) / 2)


def region(image: Dataset, outline: NDArray[np.float64]) -> Dataset:
    """A closed polyline, float64 (N, 2): column and row, on the source."""
    source = items.image(items.SELECTED, concept("item", "source"), image)
    return items.polyline(concept("item", "region"), outline, [source])
