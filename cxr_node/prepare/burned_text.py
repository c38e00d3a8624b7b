"""Burned-in text of a radiograph: found by its strokes, and blanked outside the lungs.

Strokes of letters are thin, brighter or darker than everything around them, and have edges of a pixel or two; anatomy has soft
edges. Detection is a guess: it misses small, faint or blurred writing, and text over the lungs is kept. The results therefore
state that text may remain.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

_LONGEST_SIDE_PX = 2048
"""Larger pictures are looked at in this size."""
_SIZES = (9, 17, 33, 61)
"""Pixels within which a stroke ends: letters from some 12 to some 200 pixels high."""
_STEP, _EDGE = 0.12, 0.06
"""How far a stroke stands out of its surroundings, and how steep its edges are for each pixel, of 0..1."""
_LEAST_HEIGHT_PX, _MOST_HEIGHT = 6, 0.08
"""Of a letter; the latter as a share of the picture's height."""
_LONGEST_LETTER = 8.0
"""Width by height, at most: letters that touch are one piece."""
_FILLED = (0.08, 0.97)
"""Share of its rectangle that a letter fills."""
_LEAST_LETTERS = 3
_MARGIN = 0.4
"""Blacked around a line, as a share of its height."""


@dataclass(frozen=True)
class _Piece:
    """What may be a letter: its rectangle in pixels."""

    left: int
    top: int
    width: int
    height: int


def find_text(pixels: NDArray[np.float32]) -> list[tuple[int, int, int, int]]:
    """Lines of text.

    Args:
        pixels: float32 (rows, columns) in 0..1, NaN where there is nothing.

    Returns:
        top, bottom, left and right of each, as slice bounds, with a margin.
    """
    rows, columns = pixels.shape
    scale = min(1.0, _LONGEST_SIDE_PX / max(rows, columns))
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    picture = np.nan_to_num(pixels, nan=0.0)
    small = picture
    if scale < 1:
        small = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.float32)
    found = []
    for mask in _strokes(small):
        for left, top, width, height in _lines(_pieces(mask, small)):
            margin = max(2, round(_MARGIN * height))
            bounds = (top - margin, top + height + margin, left - margin, left + width + margin)
            scaled = [round(bound / scale) for bound in bounds]
            found.append((max(0, scaled[0]), min(rows, scaled[1] + 1), max(0, scaled[2]), min(columns, scaled[3] + 1)))
    return found


def blackened(pixels: NDArray[np.float32], lungs: NDArray[np.bool_]) -> tuple[NDArray[np.float32], int]:
    """The picture with text outside of the lungs blacked, and how many lines that were.

    Args:
        pixels: float32 (rows, columns) in 0..1; left as it is.
        lungs: bool (rows, columns), on the same pixels: what lies on them stays.
    """
    lines = find_text(pixels)
    covered = np.zeros(pixels.shape, np.bool_)
    for top, bottom, left, right in lines:
        covered[top:bottom, left:right] = True
    covered &= ~lungs
    result = pixels.copy()
    result[covered] = 0.0
    return result, len(lines)


def _strokes(small: NDArray[np.float32]) -> list[NDArray[np.uint8]]:
    """Masks, uint8 0 or 1, of thin bright and thin dark strokes with steep edges, for each size of letters."""
    steep = cv2.morphologyEx(small, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 2 * _EDGE
    near_steep = cv2.dilate(steep.astype(np.uint8), np.ones((3, 3), np.uint8))
    masks = []
    for size in _SIZES:
        kernel = np.ones((size, size), np.uint8)
        for operation in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT):
            thin = cv2.morphologyEx(small, operation, kernel) > _STEP
            masks.append((thin & (near_steep > 0) if size <= 9 else thin).astype(np.uint8))
    return masks


def _pieces(mask: NDArray[np.uint8], small: NDArray[np.float32]) -> list[_Piece]:
    """Connected pieces of a mask that have the form of a letter, and edges as steep as one."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    pieces = []
    for number in range(1, count):
        left, top, width, height, area = (int(value) for value in stats[number])
        if not _LEAST_HEIGHT_PX <= height <= _MOST_HEIGHT * mask.shape[0] or width > _LONGEST_LETTER * height or width < 2:
            continue
        if not _FILLED[0] <= area / (width * height) <= _FILLED[1] and width > 0.35 * height:
            continue
        inside = labels[top : top + height, left : left + width] == number
        if _edge(small, left, top, inside) >= _EDGE * 2:
            pieces.append(_Piece(left, top, width, height))
    return pieces


def _edge(small: NDArray[np.float32], left: int, top: int, inside: NDArray[np.bool_]) -> float:
    """The median change of grey within two pixels across the edge of a piece."""
    height, width = inside.shape
    rows, columns = slice(max(0, top - 1), top + height + 1), slice(max(0, left - 1), left + width + 1)
    part = small[rows, columns]
    padded = np.zeros(part.shape, np.uint8)
    padded[top - rows.start : top - rows.start + height, left - columns.start : left - columns.start + width] = inside
    outline = cv2.morphologyEx(padded, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    steps = cv2.morphologyEx(part, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))[outline]
    return float(np.median(steps)) if steps.size else 0.0


def _lines(pieces: list[_Piece]) -> list[tuple[int, int, int, int]]:
    """Pieces that stand in a row as letters do: left, top, width and height of each line of at least a few letters."""
    left_over = sorted(pieces, key=lambda piece: piece.left)
    lines = []
    while left_over:
        line = [left_over.pop(0)]
        for piece in list(left_over):
            if piece.left - (line[-1].left + line[-1].width) > 2.5 * max(line[-1].height, piece.height):
                if piece.left - line[-1].left > 12 * line[-1].height:
                    break
                continue
            if _is_next(line[-1], piece):
                line.append(piece)
                left_over.remove(piece)
        letters = sum(max(1, round(piece.width / piece.height)) for piece in line)
        if letters >= _LEAST_LETTERS:
            left, top = min(piece.left for piece in line), min(piece.top for piece in line)
            right = max(piece.left + piece.width for piece in line)
            bottom = max(piece.top + piece.height for piece in line)
            lines.append((left, top, right - left, bottom - top))
    return lines


def _is_next(one: _Piece, other: _Piece) -> bool:
    """Whether two pieces have about one height and stand on about one line."""
    taller, shorter = max(one.height, other.height), min(one.height, other.height)
    overlap = min(one.top + one.height, other.top + other.height) - max(one.top, other.top)
    return shorter >= 0.4 * taller and overlap >= 0.5 * shorter
