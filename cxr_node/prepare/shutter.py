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
_LARGEST = 2**31 - 1
"""Of an integer string (PS3.5 section 6.2)."""
_EDGES = ("ShutterUpperHorizontalEdge", "ShutterLowerHorizontalEdge", "ShutterLeftVerticalEdge", "ShutterRightVerticalEdge")
_OF_SEVERAL_VALUES = frozenset(("CenterOfCircularShutter", "VerticesOfThePolygonalShutter"))


@dataclass(frozen=True)
class Shutter:
    """What a shutter hides.

    hidden: bool (rows, columns).
    grey: stands in for what is hidden, 0..1.
    attributes: keywords and values of the shapes that hide it, in the form that the standard asks for.
    """

    hidden: NDArray[np.bool_]
    grey: float
    attributes: tuple[tuple[str, tuple[str | int, ...]], ...]


def shutter_of(ds: Dataset, rows: int, columns: int) -> Shutter | None:
    """The shutter of an image: what lies outside any of its shapes is hidden. None where it says nothing or nonsense.

    A shape without measures, or that opens nothing, is passed over, and so is BITMAP (C.7.6.15): it is of presentation states
    alone.
    """
    hidden = np.zeros((rows, columns), np.bool_)
    attributes: dict[str, tuple[str | int, ...]] = {}
    for name in dict.fromkeys(str(value).strip().upper() for value in values_of(ds, "ShutterShape")):
        if name not in _SHAPES:
            continue
        draw, keywords = _SHAPES[name]
        opened = draw(ds, rows, columns)
        if opened is not None and opened.any():
            hidden |= ~opened
            attributes["ShutterShape"] = (*attributes.get("ShutterShape", ()), name)
            attributes |= {keyword: _whole(ds, keyword) for keyword in keywords}
    if not hidden.any() or hidden.mean() > 1 - _LEAST_OPEN:
        return None
    grey = min(max(number(ds, "ShutterPresentationValue", 0.0) / 65535, 0.0), 1.0)
    return Shutter(hidden, grey, tuple(attributes.items()))


def _whole(ds: Dataset, keyword: str) -> tuple[int, ...]:
    """The values of a shape's measure as integer strings may have them; of an edge and a radius the first alone."""
    whole = [max(-_LARGEST, min(round(value), _LARGEST)) for value in numbers(ds, keyword) if value is not None]
    return tuple(whole if keyword in _OF_SEVERAL_VALUES else whole[:1])


def _rectangle(ds: Dataset, rows: int, columns: int) -> NDArray[np.bool_] | None:
    """Between the edges, which count from 1; they themselves are seen."""
    edges = [number(ds, keyword) for keyword in _EDGES]
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


_SHAPES: dict[str, tuple[Callable[[Dataset, int, int], NDArray[np.bool_] | None], tuple[str, ...]]] = {
    "RECTANGULAR": (_rectangle, _EDGES),
    "CIRCULAR": (_circle, ("CenterOfCircularShutter", "RadiusOfCircularShutter")),
    "POLYGONAL": (_polygon, ("VerticesOfThePolygonalShutter",)),
}
"""How each shape is drawn, and its attributes."""
