"""Orientation of a source image, and the mapping to the upright image and back, for maps, masks, outlines and points.

The network image is the whole upright image, stretched to a square. Non-square pixels therefore need no special treatment: a
pixel's position is a fraction of the width and the height, whatever its size in millimetres, and the way back inverts the
stretch. Only pictures for readers have to respect PixelAspectRatio. In a letterboxed capture, the picture between the bars
takes the place of the whole image.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from cxr_node.prepare.header import values_of
from cxr_node.records import Geometry

_SMOOTHING_PX = 1.2
"""Smoothing of a mask's border, in pixels of the mask, so that its steps don't show on the source."""

_OUTLINE_GRID_PX = 896
"""Side of the grid that outlines are traced on."""

_OUTLINE_TOLERANCE = 0.0008
"""Tolerance of simplified outlines, as a fraction of the image's side: a fifth of a network pixel."""

_AXES = ("LR", "AP", "HF")
_IN_WORDS = {"LEFT": "L", "RIGHT": "R", "HEAD": "H", "FOOT": "F", "FEET": "F", "ANTERIOR": "A", "POSTERIOR": "P"}
_ROW_ENDS, _COLUMN_ENDS = ("L", "R"), ("F", "H")


def orientation(ds: Dataset) -> tuple[str, str] | None:
    """Where the patient's body lies at the right end of a row and at the bottom of a column (PS3.3 C.7.6.1.1.1).

    Returns:
        the leading letter of both values of PatientOrientation, each of L, R, A, P, H, F; None if they don't say.
    """
    said = orientation_values(ds)
    return None if said is None else (said[0][0], said[1][0])


def orientation_values(ds: Dataset) -> tuple[str, str] | None:
    """Both values of PatientOrientation in the standard's letters, such as L and FP; None if they don't say.

    A word that merely begins with one of the letters says nothing: P is "pied" in French, F "front" in English.
    """
    said = [_letters(part) for part in values_of(ds, "PatientOrientation")]
    return (said[0], said[1]) if len(said) == 2 and all(said) else None


def _letters(value: Any) -> str:
    """One value of PatientOrientation, of one to three letters along different axes; empty if it is something else."""
    written = str(value).strip().upper()
    written = _IN_WORDS.get(written, written)
    axes = [next((axis for axis in _AXES if letter in axis), "") for letter in written]
    return written if all(axes) and 1 <= len(axes) == len(set(axes)) else ""


def geometry_of(ds: Dataset, rows: int, columns: int) -> Geometry:
    r"""How to turn an image upright (patient's right on the image's left, head up), by PatientOrientation alone.

    An image whose PatientOrientation is absent, empty or that of no frontal view is used as it is, with unknown sides.

    FieldOfViewRotation and FieldOfViewHorizontalFlip say what was done to the stored pixels relative to the
    detector before they were stored (PS3.3 C.8.11.4, DX Detector module). PatientOrientation describes the
    result, so turning by them as well would turn an upright image over: a real detector mounted sideways writes 90 and
    YES over an upright image of orientation L\F. They are not read.
    """
    ends = orientation(ds)
    if ends is None:
        return Geometry(rows, columns, sides_said=False)
    row, column = ends
    if row in _ROW_ENDS and column in _COLUMN_ENDS:
        return Geometry(rows, columns, flipped_vertically=column == "H", flipped_horizontally=row == "R")
    if row in _COLUMN_ENDS and column in _ROW_ENDS:  # lies on its side: a transposition swaps the two
        return Geometry(rows, columns, True, flipped_vertically=row == "H", flipped_horizontally=column == "R")
    return Geometry(rows, columns, sides_said=False)


def to_upright(array: NDArray[Any], geometry: Geometry) -> NDArray[Any]:
    """Turn an array in the source's orientation upright.

    Args:
        array: (H, W) or (H, W, C) of any size.
        geometry: of the source.

    Returns:
        the same values, (W, H) where the geometry is transposed; in contiguous memory.
    """
    if geometry.transposed:
        array = array.swapaxes(0, 1)
    if geometry.flipped_vertically:
        array = array[::-1]
    if geometry.flipped_horizontally:
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def to_source(upright: NDArray[Any], geometry: Geometry, shape: tuple[int, int] | None = None) -> NDArray[np.float32]:
    """Map a map of the network image, or of any stretch of the upright image, back to the source.

    Args:
        upright: (h, w) of any size, upright, covering the whole image.
        geometry: of the source.
        shape: rows and columns of the result; None: the source's own.

    Returns:
        float32 `shape`, in the source's orientation, interpolated linearly; averaged where it shrinks.
    """
    values = _turned_back(np.asarray(upright, np.float32), geometry)
    return np.asarray(_placed(values, geometry, shape or (geometry.rows, geometry.columns)), np.float32)


def bytes_to_source(upright: NDArray[np.float32], geometry: Geometry) -> NDArray[np.uint8]:
    """As `to_source`, for values 0..1 to 0..255, several times as fast; for large objects."""
    values = np.rint(np.clip(upright, 0, 1) * np.float32(255)).astype(np.uint8)
    return np.asarray(_placed(_turned_back(values, geometry), geometry, (geometry.rows, geometry.columns)), np.uint8)


def mask_to_source(mask: NDArray[np.bool_], geometry: Geometry, shape: tuple[int, int] | None = None) -> NDArray[np.bool_]:
    """Map a mask of the upright image back to the source, with a smoothed border.

    Args:
        mask: bool (h, w), upright, covering the whole image.
        geometry: of the source.
        shape: rows and columns of the result; None: the source's own.

    Returns:
        bool `shape`, in the source's orientation.
    """
    smooth = np.asarray(cv2.GaussianBlur(mask.astype(np.uint8) * np.uint8(255), (0, 0), _SMOOTHING_PX), np.uint8)
    return _placed(_turned_back(smooth, geometry), geometry, shape or (geometry.rows, geometry.columns)) >= 128


def outlines_in_source(mask: NDArray[np.bool_], geometry: Geometry) -> list[NDArray[np.float64]]:
    """The outlines of a mask of the upright image in the source's pixel matrix, the longest first; holes left out.

    Args:
        mask: bool (h, w), upright.
        geometry: of the source.

    Returns:
        float64 (N, 2) each: column and row, from (0, 0) at the outer corner of the first pixel (PS3.3 C.18.6.1.1 and
        C.10.5.1.2), closed: the last point is the first.
    """
    grid = mask_to_source(mask, geometry, (_OUTLINE_GRID_PX, _OUTLINE_GRID_PX)).astype(np.uint8)
    traced, _ = cv2.findContours(grid, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    scale = np.array([geometry.columns, geometry.rows]) / _OUTLINE_GRID_PX
    found = []
    for contour in sorted(traced, key=len, reverse=True):
        corners = cv2.approxPolyDP(contour, _OUTLINE_TOLERANCE * _OUTLINE_GRID_PX, closed=True).reshape(-1, 2)
        if len(corners) >= 3:
            points = (corners + 0.5) * scale
            found.append(np.vstack((points, points[:1])))
    return found


def points_to_source(points: NDArray[np.float64], geometry: Geometry) -> NDArray[np.float64]:
    """Points of the upright image in the source's pixel matrix.

    Args:
        points: float64 (N, 2): column and row as shares of the upright image's width and height, 0..1.
        geometry: of the source.

    Returns:
        float64 (N, 2): column and row, as `outlines_in_source`.
    """
    x, y = points[:, 0], points[:, 1]
    if geometry.flipped_horizontally:
        x = 1 - x
    if geometry.flipped_vertically:
        y = 1 - y
    if geometry.transposed:
        x, y = y, x
    top, bottom, left, right = geometry.box or (0, geometry.rows, 0, geometry.columns)
    return np.stack((left + x * (right - left), top + y * (bottom - top)), axis=1)


def _turned_back(upright: NDArray[Any], geometry: Geometry) -> NDArray[Any]:
    """From upright to the source's orientation: `to_upright` undone."""
    if geometry.flipped_horizontally:
        upright = upright[:, ::-1]
    if geometry.flipped_vertically:
        upright = upright[::-1]
    return np.ascontiguousarray(upright.T if geometry.transposed else upright)


def _placed(values: NDArray[Any], geometry: Geometry, shape: tuple[int, int]) -> NDArray[Any]:
    """A map of the analysed part of the source, stretched over that part of an array of this shape; 0 elsewhere."""
    if geometry.box is None:
        return _stretched(values, shape)
    down, across = shape[0] / geometry.rows, shape[1] / geometry.columns
    top, bottom, left, right = (
        round(edge * scale) for edge, scale in zip(geometry.box, (down, down, across, across), strict=True)
    )
    placed = np.zeros(shape, values.dtype)
    placed[top:bottom, left:right] = _stretched(values, (bottom - top, right - left))
    return placed


def _stretched(values: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    if values.shape == shape:
        return values.copy()
    rows, columns = shape
    shrinking = rows <= values.shape[0] and columns <= values.shape[1]
    interpolation = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(values, (columns, rows), None, 0, 0, interpolation))
