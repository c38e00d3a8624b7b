"""The classifier's input from a prepared image (CXRNet section III-A): segmented lungs or the whole image, contrast enhanced.

Pure array code; `segment` finds the lungs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

CLAHE_CLIP_LIMIT = 2.0
CLAHE_TILES = 8
_MARGIN = 0.03
"""Margin around the lungs, as a fraction of their box."""


@dataclass(frozen=True)
class LungCrop:
    """What the classifier sees, and where it lay in the prepared image.

    image: uint8 (S, S), enhanced, 0 where nothing is shown.
    shown: bool (S, S), the lungs, or everything for a classifier of whole images.
    mask: bool (S, S), the lungs.
    box: top, bottom, left, right in the prepared image, as slice bounds.
    """

    image: NDArray[np.uint8]
    shown: NDArray[np.bool_]
    mask: NDArray[np.bool_]
    box: tuple[int, int, int, int]

    def to_prepared(self, values: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
        """Put a map of the crop, float32 (S, S), back into the prepared image's frame, float32 `shape`, 0 elsewhere."""
        top, bottom, left, right = self.box
        placed = np.zeros(shape, np.float32)
        placed[top:bottom, left:right] = cv2.resize(values, (right - left, bottom - top), None, 0, 0, cv2.INTER_LINEAR)
        return placed


def lung_box(mask: NDArray[np.bool_], margin: float = _MARGIN) -> tuple[int, int, int, int]:
    """Bounds of the lungs with a margin: top, bottom, left, right; the whole image for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = mask.shape
    if rows.size == 0:
        return 0, height, 0, width
    down, across = (rows[-1] + 1 - rows[0]) * margin, (columns[-1] + 1 - columns[0]) * margin
    return (
        max(0, int(rows[0] - down)),
        min(height, int(np.ceil(rows[-1] + 1 + down))),
        max(0, int(columns[0] - across)),
        min(width, int(np.ceil(columns[-1] + 1 + across))),
    )


def clahe(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Contrast limited adaptive histogram equalisation (CXRNet section III-A.2), uint8 (H, W) to the same."""
    enhanced = cv2.createCLAHE(CLAHE_CLIP_LIMIT, (CLAHE_TILES, CLAHE_TILES)).apply(image)
    return np.asarray(enhanced, np.uint8)


def cut_out_lungs(prepared: NDArray[np.uint8], mask: NDArray[np.bool_], size_px: int) -> LungCrop:
    """Crop to the lungs, blank what is not lung, enhance.

    Differs: the paper keeps the frame of the whole image; cropping spends the network's pixels on lung and hides how
    the film was cut, which tells a hospital more than a disease.

    Args:
        prepared: uint8 (H, W) from `prepare.to_network_image`.
        mask: bool (H, W), the lungs.
        size_px: side of the crop.
    """
    top, bottom, left, right = box = lung_box(mask)
    image = cv2.resize(prepared[top:bottom, left:right], (size_px, size_px), None, 0, 0, cv2.INTER_LINEAR)
    lungs = _resized(mask[top:bottom, left:right], size_px)
    image = clahe(np.where(lungs, image, 0).astype(np.uint8))
    return LungCrop(np.where(lungs, image, 0).astype(np.uint8), lungs, lungs, box)


def classifier_input(prepared: NDArray[np.uint8], mask: NDArray[np.bool_], size_px: int, segmented: bool) -> LungCrop:
    """What a classifier gets that was trained on lungs cut out (`segmented`) or on whole images, in serving and in training.

    Args:
        prepared: uint8 (H, W) from `prepare.to_network_image`.
        mask: bool (H, W), the lungs; for whole images it says where they are and changes nothing of the image.
        size_px: side of what the classifier gets.
        segmented: `preprocessing.segmented` of the weights.
    """
    if segmented:
        return cut_out_lungs(prepared, mask, size_px)
    whole = cut_out_lungs(prepared, np.ones_like(mask), size_px)
    return replace(whole, mask=_resized(mask, size_px))


def _resized(mask: NDArray[np.bool_], size_px: int) -> NDArray[np.bool_]:
    return np.asarray(cv2.resize(mask.astype(np.float32), (size_px, size_px), None, 0, 0, cv2.INTER_LINEAR) >= 0.5)
