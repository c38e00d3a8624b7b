"""Finds candidates for the film's own letter R or L: small, isolated shapes that contrast with their surroundings.

`analyse.letters` reads them. The search uses a reduced image in which a marker's letter is still about 20 pixels high. It misses
shapes that touch something equally bright, that are part of a word, or whose strokes are as wide as a finger.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_node.records import LetterCandidates

LOOKED_AT_PX = 1024
"""Longest side of the reduced image."""
PATCH_PX = 48
PATCH_MARGIN = 1.9
"""Side of a patch as a multiple of the longer side of its shape: the margin shows whether the shape is isolated."""

_STROKE_PX = 25
"""Widest stroke of a letter."""
_STEPS = ((False, 22), (False, 60), (True, 40))
"""Whether shapes are darker than their surroundings, and their least contrast (of 255)."""
_MOST_RUNS = 65_000
"""A mask with more horizontal runs of set pixels is noise, and its component numbers would not fit into 16 bits."""
_HEIGHT_PX = (13, 88)
_WIDTH_BY_HEIGHT = (0.34, 1.6)
_FILLED = (0.14, 0.84)
"""Share of its bounding box that a letter fills."""
_MOST = 40
"""Candidates of an image: those with the highest contrast."""


@dataclass(frozen=True)
class Pieces:
    """Connected components of one mask that could be a letter by their size and form.

    labels: uint16 (H, W), the component number of each pixel.
    numbers: int (N,), the components that could be a letter.
    boxes: int (N, 4), left, top, width and height.
    contrast: float (N,), mean contrast of each, 0..255.
    dark: the components are darker than their surroundings.
    """

    labels: NDArray[np.uint16]
    numbers: NDArray[np.int64]
    boxes: NDArray[np.int64]
    contrast: NDArray[np.float64]
    dark: bool


def find_letters(upright: NDArray[np.float32]) -> LetterCandidates:
    """Find the candidates for letters on a radiograph.

    Args:
        upright: float32 (H, W) in 0..1, MONOCHROME2, turned upright where the header gives the orientation; NaN where padded.
    """
    grey = _reduced(upright)
    found = pieces_of(grey)
    return cut_out(grey, found)


def pieces_of(grey: NDArray[np.uint8]) -> list[Pieces]:
    """Find bright and dark components at each contrast step. grey: uint8 (H, W)."""
    kernel = np.ones((_STROKE_PX, _STROKE_PX), np.uint8)
    smooth = cv2.blur(grey, (3, 3))
    standing_out = {
        dark: np.asarray(cv2.morphologyEx(smooth, cv2.MORPH_BLACKHAT if dark else cv2.MORPH_TOPHAT, kernel), np.uint8)
        for dark in {dark for dark, _ in _STEPS}
    }
    return [_pieces_at(standing_out[dark], step, dark) for dark, step in _STEPS]


def cut_out(grey: NDArray[np.uint8], found: list[Pieces], most: int = _MOST) -> LetterCandidates:
    """Cut out patches around the components with the highest contrast.

    Args:
        grey: uint8 (H, W), the image that was searched.
        found: see `pieces_of`.
        most: the number of patches.
    """
    rows = [(pieces, index) for pieces in found for index in range(len(pieces.numbers))]
    rows.sort(key=lambda row: -row[0].contrast[row[1]])
    rows = rows[:most]
    patches = np.zeros((len(rows), 2, PATCH_PX, PATCH_PX), np.uint8)
    boxes = np.zeros((len(rows), 4), np.float32)
    height, width = grey.shape
    for row, (pieces, index) in enumerate(rows):
        left, top, wide, high = (int(value) for value in pieces.boxes[index])
        side = PATCH_MARGIN * max(wide, high)
        scale = PATCH_PX / side
        shift = (PATCH_PX / 2 - scale * (left + wide / 2), PATCH_PX / 2 - scale * (top + high / 2))
        part = (slice(top, top + high), slice(left, left + wide))
        mask = (pieces.labels[part] == pieces.numbers[index]).astype(np.uint8) * np.uint8(255)
        matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
        patches[row, 0] = _stretched(_warped(grey, matrix, (left, top, wide, high), side), dark=pieces.dark)
        patches[row, 1] = _placed_mask(mask, scale)
        boxes[row] = left / width, top / height, (left + wide) / width, (top + high) / height
    return LetterCandidates(patches, boxes)


def _reduced(upright: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The image reduced for the search: uint8, longest side LOOKED_AT_PX."""
    whole = min(max(upright.shape) // LOOKED_AT_PX, min(upright.shape) // _STROKE_PX)
    if whole >= 2:  # first by a whole factor, which is several times faster
        rows, columns = (side // whole for side in upright.shape)
        part = upright[: rows * whole, : columns * whole]
        upright = np.asarray(cv2.resize(part, (columns, rows), None, 0, 0, cv2.INTER_AREA), np.float32)
    rows, columns = upright.shape
    scale = LOOKED_AT_PX / max(rows, columns)
    size = (max(_STROKE_PX, round(columns * scale)), max(_STROKE_PX, round(rows * scale)))
    small = cv2.resize(upright, size, None, 0, 0, cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    return np.asarray(np.clip(np.nan_to_num(small, copy=False, nan=0.0) * 255, 0, 255), np.uint8)


def _pieces_at(standing_out: NDArray[np.uint8], step: int, dark: bool) -> Pieces:
    _, mask = cv2.threshold(standing_out, step, 255, cv2.THRESH_BINARY)
    if cv2.countNonZero(cv2.subtract(mask[:, 1:], mask[:, :-1])) > _MOST_RUNS:
        mask[:] = 0
    _, numbered, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8, ltype=cv2.CV_16U)
    labels = np.asarray(numbered, np.uint16)
    left, top, width, height, area = (stats[:, column].astype(np.int64) for column in range(5))
    tall = (height >= _HEIGHT_PX[0] * 0.6) & (height <= _HEIGHT_PX[1] * 1.3) & (area >= 12)
    tall[0] = False  # the background
    likely = tall & (height >= _HEIGHT_PX[0]) & (height <= _HEIGHT_PX[1])
    likely &= (width >= _WIDTH_BY_HEIGHT[0] * height) & (width <= _WIDTH_BY_HEIGHT[1] * height)
    filled = area / np.maximum(1, width * height)
    likely &= (filled >= _FILLED[0]) & (filled <= _FILLED[1])
    boxes = np.stack((left, top, width, height), axis=1)
    numbers = np.flatnonzero(likely)
    numbers = numbers[_stands_alone(boxes[numbers], boxes[tall])]
    contrast = [_contrast(standing_out, labels, int(number), boxes[number]) for number in numbers]
    return Pieces(labels, numbers, boxes[numbers], np.array(contrast, np.float64), dark)


def _stands_alone(boxes: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the boxes, int (N, 4), have no neighbour of similar height on the same line, as the letters of a word have."""
    left, top, width, height = (boxes[:, None, column] for column in range(4))
    other_left, other_top, other_width, other_height = (others[None, :, column] for column in range(4))
    overlap = np.minimum(top + height, other_top + other_height) - np.maximum(top, other_top)
    gap = np.maximum(left, other_left) - np.minimum(left + width, other_left + other_width)
    similar = (other_height >= 0.55 * height) & (other_height <= 1.8 * height)
    neighbour = similar & (overlap >= 0.5 * np.minimum(height, other_height)) & (gap >= -0.3 * width) & (gap <= 0.9 * height)
    neighbour &= (left != other_left) | (top != other_top)  # not the piece itself
    return np.asarray(~neighbour.any(axis=1), np.bool_)


def _contrast(standing_out: NDArray[np.uint8], labels: NDArray[np.uint16], number: int, box: NDArray[np.int64]) -> float:
    left, top, width, height = (int(value) for value in box)
    part = (slice(top, top + height), slice(left, left + width))
    return float(standing_out[part][labels[part] == number].mean())


def _warped(
    grey: NDArray[np.uint8], matrix: NDArray[np.float64], box: tuple[int, int, int, int], side: float
) -> NDArray[np.uint8]:
    """The square around a box, scaled to PATCH_PX; pixels at the image border are repeated."""
    left, top, wide, high = box
    if side <= PATCH_PX:
        return np.asarray(
            cv2.warpAffine(grey, matrix, (PATCH_PX, PATCH_PX), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8
        )
    half = side / 2
    x, y = left + wide / 2, top + high / 2
    columns = np.clip(np.arange(round(x - half), round(x + half)), 0, grey.shape[1] - 1)
    rows = np.clip(np.arange(round(y - half), round(y + half)), 0, grey.shape[0] - 1)
    part = grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    before, after = int((rows == rows[0]).sum()) - 1, int((rows == rows[-1]).sum()) - 1
    ahead, behind = int((columns == columns[0]).sum()) - 1, int((columns == columns[-1]).sum()) - 1
    if before or after or ahead or behind:
        part = np.asarray(cv2.copyMakeBorder(part, before, after, ahead, behind, cv2.BORDER_REPLICATE), np.uint8)
    return np.asarray(cv2.resize(part, (PATCH_PX, PATCH_PX), None, 0, 0, cv2.INTER_AREA), np.uint8)


def _placed_mask(mask: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """The shape of a component, centred in a patch."""
    height, width = (max(1, min(PATCH_PX, round(side * scale))) for side in mask.shape)
    small = cv2.resize(mask, (width, height), None, 0, 0, cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    placed = np.zeros((PATCH_PX, PATCH_PX), np.uint8)
    top, left = (PATCH_PX - height) // 2, (PATCH_PX - width) // 2
    placed[top : top + height, left : left + width] = small
    return placed


def _stretched(patch: NDArray[np.uint8], dark: bool) -> NDArray[np.uint8]:
    """The patch stretched to the full grey range, inverted where the component is dark."""
    values = (255 - patch if dark else patch).astype(np.float32)
    ordered = np.sort(values, axis=None)
    low, high = float(ordered[ordered.size // 50]), float(ordered[-ordered.size // 50])
    return np.asarray(np.clip((values - low) * (255 / max(high - low, 8.0)), 0, 255), np.uint8)
