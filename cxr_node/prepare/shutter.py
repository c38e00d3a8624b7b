"""The display shutter (PS3.3 C.7.6.11): which pixels a header hides from the reader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from cxr_node.prepare.header import number, numbers, values_of

_LEAST_OPEN = 0.1
"""A shutter that leaves less than this share of the image is nonsense."""


@dataclass(frozen=True)
class Shutter:
    """Pixels that are hidden, bool (rows, columns), and the grey that stands in for them, 0..1."""

    hidden: NDArray[np.bool_]
    grey: float


def shutter_of(ds: Dataset, rows: int, columns: int) -> Shutter | None:
    """The shutter of an image: what lies outside any of its shapes is hidden. None where it says nothing or nonsense.

    BITMAP (C.7.6.15) is of presentation states alone and is passed over.
    """
    hidden = np.zeros((rows, columns), np.bool_)
    for shape in values_of(ds, "ShutterShape"):
        draw = _SHAPES.get(str(shape).strip().upper())
        opened = draw(ds, rows, columns) if draw is not None else None
        if opened is not None and opened.any():
            hidden |= ~opened
    if not hidden.any() or hidden.mean() > 1 - _LEAST_OPEN:
        return None
    return Shutter(hidden, min(max(number(ds, "ShutterPresentationValue", 0.0) / 65535, 0.0), 1.0))


def _rectangle(ds: Dataset, rows: int, columns: int) -> NDArray[np.bool_] | None:
    """Between the edges, which count from 1; they themselves are seen."""
    keywords = ("ShutterUpperHorizontalEdge", "ShutterLowerHorizontalEdge", "ShutterLeftVerticalEdge", "ShutterRightVerticalEdge")
    edges = [number(ds, keyword) for keyword in keywords]
    if None in edges:
        return None
    upper, lower, left, right = (round(edge) for edge in edges)
    opened = np.zeros((rows, columns), np.bool_)
    opened[max(0, upper - 1) : max(0, lower), max(0, left - 1) : max(0, right)] = True
    return opened


def _circle(ds: Dataset, rows: int, columns: int) -> NDArray[np.bool_] | None:
    centre, radius = numbers(ds, "CenterOfCircularShutter"), number(ds, "RadiusOfCircularShutter")
    if len(centre) != 2 or None in centre or radius is None or radius <= 0:
        return None
    row, column = np.ogrid[1 : rows + 1, 1 : columns + 1]
    return np.asarray((row - centre[0]) ** 2 + (column - centre[1]) ** 2 <= radius**2)


def _polygon(ds: Dataset, rows: int, columns: int) -> NDArray[np.bool_] | None:
    corners = numbers(ds, "VerticesOfThePolygonalShutter")
    if len(corners) < 6 or len(corners) % 2 or None in corners:
        return None
    points = np.clip(np.array(corners, np.float64).reshape(-1, 2)[:, ::-1] - 1, -30000, 30000)  # row, column → x, y
    opened = np.zeros((rows, columns), np.uint8)
    cv2.fillPoly(opened, [np.rint(points).astype(np.int32)], 1)
    return opened > 0


_SHAPES: dict[str, Callable[[Dataset, int, int], NDArray[np.bool_] | None]] = {
    "RECTANGULAR": _rectangle,
    "CIRCULAR": _circle,
    "POLYGONAL": _polygon,
}
