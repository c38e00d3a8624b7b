"""Reads the film's own letter R or L, which tells where the patient's right is.

A letter counts only if the network recognises it in three framings and recognises the mirror image as the mirrored letter, if it
stands clearly on one side and outside the lungs, and if no other letter contradicts it.
An unread letter is better than a wrong one.
`python -m training letters` makes the weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_node.nets.constants import LETTER_CLASSES, LETTER_SIZE_PX
from cxr_node.nets.letters import LetterNet, shipped_letter_net
from cxr_node.records import LetterCandidates, Marker

MIRRORED = (0, 3, 4, 1, 2)
"""The index of the mirror image of each of LETTER_CLASSES."""

_FRAMINGS_PX = (40, 34, 48)
"""Sides of the central squares that are classified: the first of all candidates, the others only of likely letters."""

_MIDDLE = (0.4, 0.6)
"""A letter between these fractions of the width is on neither side."""

_MOST_IN_LUNGS = 0.5
"""Largest fraction of a letter's box that may lie in the lungs."""


def read_marker(letters: LetterCandidates | None, lungs: NDArray[np.bool_]) -> Marker | None:
    """Read the film's marker; None if no letter is read or two contradict each other.

    Args:
        letters: the candidates of an image, see `prepare.letters`.
        lungs: bool (H, W), of the same image.
    """
    if letters is None or not len(letters.patches):
        return None
    network = shipped_letter_net()
    chances = letter_probabilities(letters.patches, network)
    return choose(letters.boxes, chances, lungs, network.description["thresholds"])


def letter_probabilities(patches: NDArray[np.uint8], network: LetterNet) -> NDArray[np.float32]:
    """The lowest probability of each of LETTER_CLASSES over all framings and mirror images: float32 (N, C), not summing to 1.

    Args:
        patches: uint8 (N, 2, 48, 48), see `LetterCandidates`.
        network: see `nets.letters`.
    """
    least = network.probabilities(_framed(patches, _FRAMINGS_PX[0]))
    likely = np.flatnonzero(least[:, 1:].max(axis=1) > 0.5)
    for mirrored in (False, True):
        for side in _FRAMINGS_PX[0 if mirrored else 1 :]:
            if not len(likely):
                break
            framed = _framed(patches[likely], side)
            seen = network.probabilities(np.ascontiguousarray(framed[..., ::-1]) if mirrored else framed)
            least[likely] = np.minimum(least[likely], seen[:, MIRRORED] if mirrored else seen)
    return least


def choose(
    boxes: NDArray[np.float32], probabilities: NDArray[np.float32], lungs: NDArray[np.bool_], thresholds: dict[str, float]
) -> Marker | None:
    """Combine the letters of an image into one marker.

    Args:
        boxes: float32 (N, 4), see `LetterCandidates`.
        probabilities: float32 (N, C), from `letter_probabilities`.
        lungs: bool (H, W).
        thresholds: the lowest probability that counts for each class except "none"; a class above 1 never counts.
    """
    read: list[tuple[float, Marker]] = []
    for box, chances in zip(boxes, probabilities, strict=True):
        name = LETTER_CLASSES[1 + int(chances[1:].argmax())]
        chance = float(chances[1:].max())
        middle = float(box[0] + box[2]) / 2
        if chance < thresholds[name] or _MIDDLE[0] <= middle <= _MIDDLE[1] or _in_lungs(box, lungs) > _MOST_IN_LUNGS:
            continue
        read.append((chance, Marker(name[-1], middle < _MIDDLE[0], mirrored=name.startswith("mirrored"))))
    plain = [one for one in read if not one[1].mirrored]
    if len({marker.right_at_left for _, marker in read}) > 1:
        return None
    return max(plain or read, key=lambda one: one[0])[1] if read else None


def _framed(patches: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    """The central squares of patches, uint8 (N, 2, 48, 48), scaled to the network's input, (N, 2, 32, 32)."""
    margin = (patches.shape[3] - side_px) // 2
    middle = patches[:, :, margin : margin + side_px, margin : margin + side_px]
    flat: Sequence[NDArray[np.uint8]] = list(middle.reshape(-1, side_px, side_px))
    size = (LETTER_SIZE_PX, LETTER_SIZE_PX)
    small = np.stack([cv2.resize(patch, size, None, 0, 0, cv2.INTER_AREA) for patch in flat])
    return np.asarray(small, np.uint8).reshape(len(patches), 2, *size)


def _in_lungs(box: NDArray[np.float32], lungs: NDArray[np.bool_]) -> float:
    """Fraction of a box that lies in the lungs."""
    height, width = lungs.shape
    left, right = int(box[0] * width), max(int(box[0] * width) + 1, round(float(box[2]) * width))
    top, bottom = int(box[1] * height), max(int(box[1] * height) + 1, round(float(box[3]) * height))
    return float(lungs[top:bottom, left:right].mean())
