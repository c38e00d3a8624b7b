"""How a source image lies, and the way from it to the upright image and back.

The network image is a plain stretch of the whole upright image to a square. So pixels that aren't square need nothing
of their own here: a pixel's place is a share of the width and of the height, whatever its size in millimetres, and the way
back is the same stretch undone. Only who draws for human eyes has to heed PixelAspectRatio.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.multival import MultiValue

from cxr_node.records import Geometry

_ROW_ENDS, _COLUMN_ENDS = ("L", "R"), ("F", "H")


def orientation(ds: Dataset) -> tuple[str, str] | None:
    """Where the patient's body lies at the right end of a row and at the bottom of a column (PS3.3 C.7.6.1.1.1).

    Returns:
        the leading letter of both values of PatientOrientation, each of L, R, A, P, H, F; None if they don't say.
    """
    value = ds.get("PatientOrientation")
    if not isinstance(value, (MultiValue, list, tuple)) or len(value) != 2:
        return None
    row, column = (str(part).strip().upper()[:1] for part in value)
    return (row, column) if row and column and set(row + column) <= set("LRAPHF") else None


def geometry_of(ds: Dataset, rows: int, columns: int) -> Geometry:
    r"""How to turn an image upright (patient's right on the image's left, head up), by PatientOrientation alone.

    An image whose PatientOrientation is absent or is that of no frontal view is taken as it lies.

    FieldOfViewRotation and FieldOfViewHorizontalFlip say what was done to the stored pixels relative to the
    detector before they were stored (PS3.3 C.8.11.4, DX Detector module). PatientOrientation describes the
    result, so turning by them as well would turn an upright image over: a real detector mounted sideways writes 90 and
    YES over an upright image of orientation L\F. They are not read.
    """
    ends = orientation(ds)
    if ends is None:
        return Geometry(rows, columns)
    row, column = ends
    if row in _ROW_ENDS and column in _COLUMN_ENDS:
        return Geometry(rows, columns, flipped_vertically=column == "H", flipped_horizontally=row == "R")
    if row in _COLUMN_ENDS and column in _ROW_ENDS:  # lies on its side: a transposition swaps the two
        return Geometry(rows, columns, True, flipped_vertically=row == "H", flipped_horizontally=column == "R")
    return Geometry(rows, columns)


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
    """Lay a map of the network image, or of any stretch of the upright image, back onto the source.

    Args:
        upright: (h, w) of any size, upright, covering the whole image.
        geometry: of the source.
        shape: rows and columns of the result; None: the source's own.

    Returns:
        float32 `shape`, in the source's orientation, interpolated linearly; averaged where it shrinks.
    """
    values = np.asarray(upright, np.float32)
    if geometry.flipped_horizontally:
        values = values[:, ::-1]
    if geometry.flipped_vertically:
        values = values[::-1]
    if geometry.transposed:
        values = values.T
    rows, columns = shape or (geometry.rows, geometry.columns)
    values = np.ascontiguousarray(values)
    if values.shape == (rows, columns):
        return values.copy()
    shrinking = rows <= values.shape[0] and columns <= values.shape[1]
    interpolation = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(values, (columns, rows), None, 0, 0, interpolation), np.float32)
