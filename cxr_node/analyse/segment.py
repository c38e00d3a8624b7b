"""From the U-Net's output to the lungs: cleaned, separated into right and left, checked for plausibility."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_node.errors import Rejected

MIN_LUNG_AREA_FRACTION = 0.06
"""Smallest lung area as a fraction of the image; 0.5 % of the annotated training masks are below 0.10."""

_MIN_PART = 0.1
"""Components smaller than this share of the largest are specks, not lung."""


def clean_mask(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the two largest parts, close gaps and fill holes.

    Args:
        mask: bool (H, W), the U-Net's raw answer, upright.

    Returns:
        bool (H, W); empty where nothing was found.
    """
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    count, parts, statistics, _ = cv2.connectedComponentsWithStats(closed, connectivity=4)
    kept = np.zeros(mask.shape, np.uint8)
    if count > 1:
        areas = statistics[1:, cv2.CC_STAT_AREA]
        for part in np.argsort(areas)[::-1][:2]:
            if areas[part] >= _MIN_PART * areas.max():
                kept[parts == part + 1] = 1
    outlines, _ = cv2.findContours(kept, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(kept, outlines, -1, 1, cv2.FILLED)
    return kept.astype(bool)


def right_and_left(lungs: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The patient's right and left lung of an upright mask, bool (H, W) twice.

    The patient's right is on the image's left. Two parts are told apart by their centres; one part (lungs that touch)
    is cut at the column between its halves where it is thinnest.
    """
    count, parts, _, centres = cv2.connectedComponentsWithStats(lungs.astype(np.uint8), connectivity=4)
    if count == 3:
        first_is_right = centres[1][0] < centres[2][0]
        one, other = parts == 1, parts == 2
        return (one, other) if first_is_right else (other, one)
    columns = np.flatnonzero(lungs.any(axis=0))
    right = np.zeros_like(lungs)
    if columns.size:
        first, last = int(columns[0]), int(columns[-1]) + 1
        third = (last - first) // 3
        middle = lungs[:, first + third : last - third].sum(axis=0)
        cut = first + third + (int(middle.argmin()) if middle.size else 0)
        right[:, :cut] = lungs[:, :cut]
    return right, lungs & ~right


def zone_rows(lung: NDArray[np.bool_]) -> tuple[int, int]:
    """Rows at which the middle and the lower zone of one lung, bool (H, W), begin: thirds of its height."""
    rows = np.flatnonzero(lung.any(axis=1))
    if rows.size == 0:
        return 0, 0
    top, height = int(rows[0]), int(rows[-1]) + 1 - int(rows[0])
    return top + round(height / 3), top + round(2 * height / 3)


def check_lungs(lungs: NDArray[np.bool_]) -> None:
    """Reject an image whose lungs can't be those of a frontal chest radiograph.

    Raises:
        Rejected: no lungs, too small, or only on one side.
    """
    fraction = float(lungs.mean())
    if fraction < MIN_LUNG_AREA_FRACTION:
        raise Rejected(f"No lungs were found (they would cover {fraction:.0%} of the image): is this a frontal chest radiograph?")
    right, left = right_and_left(lungs)
    smaller, larger = sorted((float(right.sum()), float(left.sum())))
    if smaller < 0.12 * larger:
        raise Rejected("Only one lung was found: is this a frontal chest radiograph that shows both lungs?")
