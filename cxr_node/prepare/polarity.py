"""Notices a negative: a radiograph whose header says the wrong PhotometricInterpretation, or a picture saved inverted.

In a frontal chest radiograph the heart and the spine are brighter than the lungs beside them, in a negative darker, by so
much that the network's image tells: of 9,422 public radiographs three fall below the threshold, two real negatives and
a small picture on a large black ground, and of their inverted copies nine in ten do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cxr_node.prepare.network_image import content_box

_THRESHOLD = -0.2
"""Brightness of the middle less that of the lungs, of 0..1. Radiographs that fill their picture lie above -0.14, half of them above 0.31."""

_MIDDLE = (0.45, 0.85, 0.42, 0.62)
_LUNGS = ((0.25, 0.60, 0.17, 0.36), (0.25, 0.60, 0.66, 0.83))
"""Top, bottom, left, right, as shares of the upright image."""


def looks_negative(network_image: NDArray[np.uint8]) -> bool:
    """Whether a chest would be seen as a negative.

    Args:
        network_image: uint8 (S, S), upright, from `to_network_image`.
    """
    return middle_over_lungs(network_image) < _THRESHOLD


def middle_over_lungs(network_image: NDArray[np.uint8]) -> float:
    """Mean brightness where the heart lies less that where the lungs lie, -1..1, inside uniform borders."""
    image = network_image.astype(np.float32) / 255
    top, bottom, left, right = content_box(image)
    image = image[top:bottom, left:right]
    lungs = (_brightness(image, *_LUNGS[0]) + _brightness(image, *_LUNGS[1])) / 2
    return _brightness(image, *_MIDDLE) - lungs


def _brightness(image: NDArray[np.float32], top: float, bottom: float, left: float, right: float) -> float:
    rows, columns = image.shape
    box = image[int(top * rows) : int(bottom * rows), int(left * columns) : int(right * columns)]
    return float(box.mean())
