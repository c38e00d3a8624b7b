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
    top, bottom = _between_bars(_is_flat(pixels, axis=1))
    left, right = _between_bars(_is_flat(pixels, axis=0))
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


def _is_flat(pixels: NDArray[np.float32], axis: int) -> NDArray[np.bool_]:
    """Which rows (axis 1) or columns (axis 0) are of one grey, bool (N,)."""
    spread = np.fmax.reduce(pixels, axis=axis) - np.fmin.reduce(pixels, axis=axis)
    return np.asarray(~(spread > _FLAT))


def _is_one_grey(*bars: NDArray[np.float32]) -> bool:
    """Whether bars have one grey throughout; stripes are not a letterbox."""
    values = [bar[~np.isnan(bar)] for bar in bars]
    extremes = [extreme for bar in values if bar.size for extreme in (bar.min(), bar.max())]
    return not extremes or max(extremes) - min(extremes) <= _FLAT


def _between_bars(flat: NDArray[np.bool_]) -> tuple[int, int]:
    """Bounds of what lies beside a bar, or between two; all where there are none."""
    varied = np.flatnonzero(~flat)
    if varied.size == 0:
        return 0, flat.size
    before, after = int(varied[0]), int(flat.size - varied[-1] - 1)
    return (0, flat.size) if before + after < _LEAST_BARS * flat.size else (before, flat.size - after)
