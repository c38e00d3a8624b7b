"""Screen captures: a picture beside or between bars of uniform grey, which are not part of the radiograph."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cxr_node.prepare.quality import MIN_SIDE_PX
from cxr_node.records import Geometry

_FLAT = 0.02
"""A row or column that varies no more than this (of 0..1) may belong to a bar."""
_LEAST_BARS = 0.2
"""Bars that take less of the side than this together are left: the networks know them as a collimator's shadow."""
_MOST_SLENDER = 2.0
"""Largest aspect ratio of a radiograph, either way."""


def picture_box(pixels: NDArray[np.float32]) -> tuple[int, int, int, int] | None:
    """Top, bottom, left and right of the picture without its bars; None where there are none.

    Args:
        pixels: float32 (rows, columns) in 0..1; NaN, where padded, counts as a bar.
    """
    top, bottom = _between_bars(pixels)
    left, right = _between_bars(pixels.T)
    if not _is_one_grey(pixels[:top], pixels[bottom:]):
        top, bottom = 0, pixels.shape[0]
    if not _is_one_grey(pixels[:, :left], pixels[:, right:]):
        left, right = 0, pixels.shape[1]
    rows, columns = bottom - top, right - left
    whole = (rows, columns) == pixels.shape
    slender = max(rows, columns) > _MOST_SLENDER * min(rows, columns)
    return None if whole or slender or min(rows, columns) < MIN_SIDE_PX else (top, bottom, left, right)


def cut(pixels: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
    """The part of an image, (rows, columns), that is analysed."""
    if geometry.box is None:
        return pixels
    top, bottom, left, right = geometry.box
    return pixels[top:bottom, left:right]


def _between_bars(pixels: NDArray[np.float32]) -> tuple[int, int]:
    """Bounds of the rows that lie beside a bar, or between two; all where there are none."""
    rows = len(pixels)
    before = _flat_rows(pixels)
    if before == rows:  # one grey in each row
        return 0, rows
    after = _flat_rows(pixels[::-1])
    return (0, rows) if before + after < _LEAST_BARS * rows else (before, rows - after)


def _flat_rows(pixels: NDArray[np.float32]) -> int:
    """How many rows from the top are of one grey each; most radiographs have none, so that few rows are looked at."""
    at, taken = 0, 1
    while at < len(pixels):
        rows = pixels[at : at + taken]
        varied = np.flatnonzero(np.fmax.reduce(rows, axis=1) - np.fmin.reduce(rows, axis=1) > _FLAT)
        if varied.size:
            return at + int(varied[0])
        at, taken = at + taken, 2 * taken
    return len(pixels)


def _is_one_grey(*bars: NDArray[np.float32]) -> bool:
    """Whether bars have one grey throughout; stripes are not a letterbox."""
    values = [bar[~np.isnan(bar)] for bar in bars]
    extremes = [extreme for bar in values if bar.size for extreme in (bar.min(), bar.max())]
    return not extremes or max(extremes) - min(extremes) <= _FLAT
