"""Pictures to learn film letters from: radiographs of `train` with letters drawn on them, and with similar shapes.

The finder of `prepare.letters` looks at them as at any radiograph, so the network learns from what it will see. Radiographs lie
in the pictures at several scales, the smallest as mosaics, so that some of their anatomy and devices is as sharp as the letters.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_node.nets.constants import LETTER_CLASSES
from cxr_node.prepare.letters import cut_out, pieces_of
from training.fit.letter_shapes import Picture, glyph, written

AT_BORDER, LEFT_OUT = -1, -2

TILE_PX = 768
_CELL_PX = 192
_OVERLAP, _DOUBTFUL = 0.5, 0.25
"""Of a piece's box with that of a letter (intersection over union), from which on the piece is that letter, or left out."""
_MOST_PIECES = 200


@dataclass(frozen=True)
class Samples:
    """Pieces that the finder found.

    patches: uint8 (N, 2, 48, 48).
    classes: int (N,), index in LETTER_CLASSES; AT_BORDER: of a radiograph itself, where letters stand; LEFT_OUT: neither.
    expected_left: bool (N,), of the latter: on the left of its radiograph, where an R is right and an L is not.
    """

    patches: NDArray[np.uint8]
    classes: NDArray[np.int64]
    expected_left: NDArray[np.bool_]


def draw_tile(images: NDArray[np.uint8], fonts: list[Path | None], rng: np.random.Generator) -> Samples:
    """One picture, and what the finder finds on it.

    Args:
        images: prepared radiographs, uint8 (N, 224, 224).
        fonts: see `load_fonts`.
        rng: what is drawn follows from it.
    """
    tile, across, down = _background(images, rng)
    boxes: list[tuple[float, float, float, float]] = []
    classes: list[int] = []
    for top in range(0, TILE_PX, _CELL_PX):
        for left in range(0, TILE_PX, _CELL_PX):
            if rng.random() < 0.25:
                continue
            name = int(rng.choice(len(LETTER_CLASSES), p=(0.44, 0.19, 0.19, 0.09, 0.09)))
            box = _put(tile, name, (left, top), fonts, rng)
            boxes.append(box)
            classes.append(name)
    grey = _exposed(tile, rng)
    found = cut_out(grey, pieces_of(grey), _MOST_PIECES)
    return _labelled(found.patches, found.boxes * TILE_PX, np.array(boxes), np.array(classes), (across, down))


def _labelled(
    patches: NDArray[np.uint8],
    found: NDArray[np.float32],
    drawn: NDArray[np.float64],
    names: NDArray[np.int64],
    place: tuple[Picture, Picture],
) -> Samples:
    classes = np.zeros(len(found), np.int64)
    expected_left = np.zeros(len(found), np.bool_)
    across, down = place
    for index, box in enumerate(found):
        x, y = (min(TILE_PX - 1, int((box[side] + box[side + 2]) / 2)) for side in (0, 1))
        overlaps, touches = _overlaps(box, drawn)
        if overlaps.size and overlaps.max() >= _OVERLAP:
            classes[index] = names[int(overlaps.argmax())]
        elif overlaps.size and overlaps.max() >= _DOUBTFUL and names[int(overlaps.argmax())]:
            classes[index] = LEFT_OUT
        elif not touches:
            share_x, share_y = float(across[y, x]), float(down[y, x])
            expected_left[index] = share_x < 0.5
            central = 0.25 <= share_x <= 0.75 and 0.2 <= share_y <= 0.85
            classes[index] = 0 if central else AT_BORDER
    return Samples(patches, classes, expected_left)


def _overlaps(box: NDArray[np.float32], drawn: NDArray[np.float64]) -> tuple[NDArray[np.float64], bool]:
    """Intersection over union with each of the boxes drawn, and whether any is touched."""
    if not len(drawn):
        return np.zeros(0), False
    width = np.minimum(box[2], drawn[:, 2]) - np.maximum(box[0], drawn[:, 0])
    height = np.minimum(box[3], drawn[:, 3]) - np.maximum(box[1], drawn[:, 1])
    both = np.maximum(width, 0) * np.maximum(height, 0)
    areas = (box[2] - box[0]) * (box[3] - box[1]) + (drawn[:, 2] - drawn[:, 0]) * (drawn[:, 3] - drawn[:, 1])
    margin = 12  # of what stands around a letter, too
    near = (width > -margin) & (height > -margin)
    return both / (areas - both), bool(near.any())


def _background(images: NDArray[np.uint8], rng: np.random.Generator) -> tuple[Picture, Picture, Picture]:
    """Radiographs that fill a tile, and of each pixel its place in its radiograph as shares of width and height."""
    parts = int(rng.choice((1, 1, 2, 3)))
    side = TILE_PX // parts
    tile = np.zeros((TILE_PX, TILE_PX), np.float32)
    across, down = np.zeros_like(tile), np.zeros_like(tile)
    shares = (np.arange(side, dtype=np.float32) + 0.5) / side
    for row in range(parts):
        for column in range(parts):
            image = images[int(rng.integers(len(images)))]
            part = (slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side))
            low, high = np.sort(rng.uniform(0, 255, 2)) if rng.random() < 0.4 else (0, 255)
            scaled = cv2.resize(image, (side, side), None, 0, 0, cv2.INTER_CUBIC).astype(np.float32)
            tile[part] = low + scaled * (high - low) / 255
            across[part], down[part] = shares[None, :], shares[:, None]
    return tile, across, down


def _put(
    tile: Picture, name: int, corner: tuple[int, int], fonts: list[Path | None], rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Draw a letter, or what isn't one, into a cell; its box: left, top, right, bottom."""
    mask = glyph(name, fonts, rng)
    height, width = mask.shape
    free_x, free_y = max(1, _CELL_PX - width), max(1, _CELL_PX - height)
    left, top = corner[0] + int(rng.integers(free_x)), corner[1] + int(rng.integers(free_y))
    part = tile[top : top + height, left : left + width]
    mask = mask[: part.shape[0], : part.shape[1]]
    rows, columns = np.flatnonzero(mask.max(axis=1) > 0.3), np.flatnonzero(mask.max(axis=0) > 0.3)
    if not rows.size or not columns.size or not part.size:
        return float(left), float(top), float(left), float(top)
    box = (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)
    style = rng.random()
    dark = style > 0.85
    around = float(np.median(part))
    if style < 0.2 or dark:
        _surround(tile, box, dark, rng)
    if rng.random() < 0.15:  # a shadow, as some machines draw
        shadow = np.roll(mask, (max(1, height // 24), max(1, height // 24)), (0, 1))
        part -= shadow * part * rng.uniform(0.3, 0.9)
    step = rng.uniform(28, 90) if rng.random() < 0.3 else rng.uniform(80, 255)
    value = float(np.clip(around - step if dark else around + step, 0, 255))
    if rng.random() < 0.3 and not dark:  # lead lets some of what is behind it through
        part += mask * step
    else:
        part += mask * (value - part)
    if rng.random() < 0.2:
        _beside(tile, box, value, fonts, rng)
    return tuple(float(edge) for edge in box)  # type: ignore[return-value]


def _surround(tile: Picture, box: tuple[int, int, int, int], dark: bool, rng: np.random.Generator) -> None:
    """A plate, a box or a ring around a letter."""
    left, top, right, bottom = (int(edge) for edge in box)
    margin = int((bottom - top) * rng.uniform(0.2, 0.5)) + 2
    corners = (left - margin, top - margin), (right + margin, bottom + margin)
    around = float(tile[top:bottom, left:right].mean())
    value = float(np.clip(around + rng.uniform(40, 200), 0, 255)) if dark else around * float(rng.uniform(0, 0.8))
    stroke = -1 if dark or rng.random() < 0.6 else max(1, round(margin * 0.2))
    if stroke > 0:
        value = float(np.clip(around + rng.uniform(60, 220), 0, 255))
    if rng.random() < 0.5:
        cv2.rectangle(tile, *corners, value, stroke)
    else:
        radius = int(np.hypot(right - left, bottom - top) / 2 + margin * 0.6)
        cv2.circle(tile, ((left + right) // 2, (top + bottom) // 2), radius, value, stroke, cv2.LINE_AA)


def _beside(
    tile: Picture, box: tuple[int, int, int, int], value: float, fonts: list[Path | None], rng: np.random.Generator
) -> None:
    """What stands above or below a marker's letter: somebody's initials, or a ball."""
    left, top, right, bottom = (int(edge) for edge in box)
    size = (bottom - top) * rng.uniform(0.35, 0.7)
    if rng.random() < 0.3:
        cv2.circle(tile, ((left + right) // 2, int(top - size)), int(size * 0.6), value, -1, cv2.LINE_AA)
        return
    text = "".join(rng.choice(list("ABCDEFGHJKMNPSTW"), 2))
    mask = written(text, size, fonts, rng)
    mask = mask[:, ::-1] if rng.random() < 0.5 else mask
    y = bottom - int(size * 0.25) if rng.random() < 0.5 else top - int(size * 1.9)
    x = (left + right) // 2 - mask.shape[1] // 2
    y, x = max(0, y), max(0, x)
    part = tile[y : y + mask.shape[0], x : x + mask.shape[1]]
    part += mask[: part.shape[0], : part.shape[1]] * (value - part)


def _exposed(tile: Picture, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The picture blurred, grainy and compressed, each perhaps. uint8."""
    if rng.random() < 0.4:
        tile = np.asarray(cv2.GaussianBlur(tile, (0, 0), float(rng.uniform(0.4, 1.6))), np.float32)
    if rng.random() < 0.6:
        grain = rng.standard_normal(tile.shape, np.float32) * np.float32(rng.uniform(1, 9))
        tile = tile + (cv2.GaussianBlur(grain, (0, 0), 0.8) * 2 if rng.random() < 0.5 else grain)
    grey = np.clip(tile, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        _, packed = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 95))])
        grey = np.asarray(cv2.imdecode(packed, cv2.IMREAD_GRAYSCALE), np.uint8)
    return grey
