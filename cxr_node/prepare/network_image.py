"""From a rendered radiograph to the square input image of the networks, in serving and in training.

Takes display-referred pixels (`render` made them, or a JPEG holds them) and leaves the lungs to `analyse`.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

NETWORK_SIZE_PX = 224
"""Side of the prepared image. Differs: aspect is not kept, because the public paediatric set exists only stretched."""

_LOW_PERCENTILE, _HIGH_PERCENTILE = 0.5, 99.5
_BORDER_SPREAD = 0.02
"""A row or column at the edge that varies less than this (of 0..1) is collimator or padding, not patient."""


def content_box(image: NDArray[np.float32]) -> tuple[int, int, int, int]:
    """Bounds of what lies inside uniform borders (collimator shutters, padding).

    Args:
        image: float32 (H, W) in 0..1.

    Returns:
        top, bottom, left, right as slice bounds; the whole image where the inside would be less than a quarter of it.
    """

    def inside(spread: NDArray[np.float32]) -> tuple[int, int]:
        varied = np.flatnonzero(spread > _BORDER_SPREAD)
        return (int(varied[0]), int(varied[-1]) + 1) if varied.size else (0, spread.size)

    top, bottom = inside(image.std(axis=1))
    left, right = inside(image.std(axis=0))
    if (bottom - top) * (right - left) * 4 < image.size:
        return 0, image.shape[0], 0, image.shape[1]
    return top, bottom, left, right


def to_network_image(pixels: NDArray[np.float32], size_px: int = NETWORK_SIZE_PX) -> NDArray[np.uint8]:
    """Stretch a radiograph to the networks' square and spread its greys over the whole range.

    Args:
        pixels: float32 (H, W) in 0..1, MONOCHROME2, upright as a reader hangs it; NaN where the header says padding.
        size_px: side of the result.

    Returns:
        uint8 (size_px, size_px); 0.5 and 99.5 percentile of what lies inside the borders become 0 and 255.
    """
    height, width = pixels.shape
    shrinking = height >= size_px and width >= size_px
    interpolation = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    padding = np.isnan(pixels)
    filled = np.where(padding, np.float32(0), pixels) if padding.any() else pixels
    small = filled if pixels.shape == (size_px, size_px) else cv2.resize(filled, (size_px, size_px), None, 0, 0, interpolation)
    small = np.asarray(small, np.float32)
    top, bottom, left, right = content_box(small)
    inside = small[top:bottom, left:right]
    if padding.any():
        kept = cv2.resize(padding.astype(np.float32), (size_px, size_px), None, 0, 0, interpolation)[top:bottom, left:right] < 0.5
        inside = inside[kept] if kept.any() else inside
    low, high = np.percentile(inside, (_LOW_PERCENTILE, _HIGH_PERCENTILE))
    spread = max(float(high - low), 1e-6)
    stretched = np.clip((small - low) * (255.0 / spread), 0, 255)
    return np.asarray(np.rint(stretched), np.uint8)
