"""Draws the overlay: the radiograph with the heat map inside the lungs, and a panel with the findings."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_node.compose.identity import program_version
from cxr_node.compose.notes import notes
from cxr_node.compose.words import NOT_ANALYSED, title, title_of
from cxr_node.prepare.geometry import mask_to_source, to_source
from cxr_node.records import LABELS, MODEL_NAME, NOT_FOR_DIAGNOSIS, Findings, Geometry, Radiograph

_COLOURS = cv2.COLORMAP_PLASMA
"""Perceptually uniform, readable by the colour-blind, and without the greys of the radiograph below."""
_TOP_COLOUR = 238.0
"""Where on the map the strongest heat is: the yellows above turn green over grey."""
_FULL_OPACITY = 0.6
"""Of the strongest heat: the anatomy stays visible beneath it."""
_HEADER, _PANEL = 0.046, 0.205
"""Heights of what stands above and below the radiograph, as shares of its width."""
_NOTE = 0.036
"""Height of a note's line below the panel, likewise."""
_MIN_TARGET_PX = 1024
"""Smaller sources are enlarged to this (if `max_side_px` allows), so that the panel can be read."""

_WHITE, _LIGHT, _DIM, _DARK = (255, 255, 255), (205, 205, 205), (150, 150, 150), (52, 52, 52)
_AMBER, _OUTLINE, _BAR = (255, 190, 70), (150, 225, 235), (120, 175, 225)
_REGULAR, _BOLD = 400, 650

Picture = NDArray[np.uint8]
_Colour = tuple[int, int, int]


def draw_overlay(
    radiograph: Radiograph, findings: Findings, max_side_px: int, *, pixel_aspect: float = 1.0, side_by_side: bool = False
) -> Picture:
    """The picture that readers see.

    Args:
        radiograph: its pixels are shown, in their own orientation.
        findings: what is drawn over and below them.
        max_side_px: longest side of the result, panel included.
        pixel_aspect: height of a source pixel by its width (see `source_pixels.pixel_aspect`); the picture's pixels are square.

        side_by_side: the radiograph alone stands left of the overlay.

    Returns:
        uint8 (h, w, 3), RGB.
    """
    rows, columns = radiograph.geometry.rows, radiograph.geometry.columns
    said = notes(findings)
    below = _PANEL + _NOTE * len(said)
    height, width = _picture_size(rows * pixel_aspect, columns, max_side_px, 2 if side_by_side else 1, below)
    pixels = shrink_for_overlay(radiograph.pixels, max_side_px, pixel_aspect)
    hidden = radiograph.greys.shutter_grey
    if findings.greys_inverted:  # shown as it was analysed, not as the wrong header says; what a shutter hides stays as it is
        grey = 255 - _to_grey(pixels, height, width, 1 - hidden)
    else:
        grey = _to_grey(pixels, height, width, hidden)
    plain: Picture = np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), np.uint8)
    picture = plain.copy() if side_by_side else plain
    lungs = mask_to_source(findings.lungs, radiograph.geometry, (height, width)).astype(np.uint8)
    heat = to_source(findings.heatmap, radiograph.geometry, shape=(height, width))
    left, top, across, down = cv2.boundingRect(lungs)
    box = np.s_[top : top + down, left : left + across]
    if across and down:
        picture[box] = _blend(picture[box], heat[box] * lungs[box])
    outlines, _ = cv2.findContours(lungs, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, _OUTLINE, max(1, round(width / 700)), cv2.LINE_AA)
    letters = _letters(radiograph.geometry) if findings.sides.known else ("", "")
    panel = _panel(findings, width, said, round(below * width))
    drawn = np.vstack((_header(letters, width, NOT_FOR_DIAGNOSIS), picture, panel))
    if not side_by_side:
        return drawn
    return np.hstack((np.vstack((_header(letters, width), plain, np.zeros_like(panel))), drawn))


def shrink_for_overlay(pixels: NDArray[np.float32], max_side_px: int, pixel_aspect: float = 1.0) -> NDArray[np.float32]:
    """Shrink pixels by an integer factor, if an overlay shows far fewer of them.

    The overlay of the result is identical to that of all pixels.

    Args:
        pixels: float32 (rows, columns).
        max_side_px: the overlay's, as for `draw_overlay`.
        pixel_aspect: likewise.
    """
    rows, columns = pixels.shape
    factor = int(max(columns, rows * pixel_aspect) / max_side_px / max(1.0, pixel_aspect))
    return _shrink(pixels, factor) if factor > 1 else pixels


def draw_not_analysed(reasons: Sequence[str], width: int = 1024) -> Picture:
    """A notice that there is no result, and why.

    Args:
        reasons: sentences.
        width: of the picture; its height follows from the text.

    Returns:
        uint8 (h, width, 3), RGB.
    """
    size = max(8, round(0.026 * width))
    lines = [line for reason in reasons for line in textwrap.wrap(f"• {reason}", 66, subsequent_indent="   ")]
    step = round(1.6 * size)
    picture = np.zeros((round(0.17 * width) + step * len(lines), width, 3), np.uint8)
    left = round(0.04 * width)
    _text(picture, NOT_ANALYSED, (left, round(0.07 * width)), round(0.042 * width), _WHITE, _BOLD)
    _text(picture, "No AI result: this says nothing about the patient.", (left, round(0.115 * width)), size, _AMBER, _BOLD)
    for number, line in enumerate(lines):
        baseline = round(0.17 * width) + step * number
        _text(picture, line, (left, baseline), size, _LIGHT, _REGULAR, room=width - 2 * left)
    return picture


def _picture_size(height: float, width: float, max_side_px: int, pictures: int, below: float) -> tuple[int, int]:
    """Height and width of a radiograph in the picture, so that so many of them beside each other, and the panel, fit.

    `below`: the panel's height as a share of the radiograph's width.
    """
    target = min(max_side_px, max(_MIN_TARGET_PX, round(height), round(width)))
    scale = target / max(pictures * width, height + (_HEADER + below) * width)
    columns = max(1, round(width * scale))
    room = target - round(_HEADER * columns) - round(below * columns)
    return max(1, min(round(height * scale), room)), columns


def _shrink(pixels: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Pixels shrunk by an integer factor; up to so many rows and columns at the end are cut off, which is invisible."""
    rows, columns = (side // factor for side in pixels.shape)
    whole = pixels[: rows * factor, : columns * factor]
    return np.asarray(cv2.resize(whole, (columns, rows), None, 0, 0, cv2.INTER_AREA), np.float32)


def _to_grey(pixels: NDArray[np.float32], height: int, width: int, hidden: float) -> NDArray[np.uint8]:
    """The radiograph, uint8 (height, width). Padding, and what is behind a shutter (NaN), gets the grey `hidden`, 0..1."""
    factor = min(pixels.shape[0] // height, pixels.shape[1] // width)
    if factor > 1:  # first by an integer factor: four times as fast
        pixels = _shrink(pixels, factor)
    interpolation = cv2.INTER_AREA if height <= pixels.shape[0] and width <= pixels.shape[1] else cv2.INTER_LINEAR
    grey = cv2.resize(pixels, (width, height), None, 0, 0, interpolation)
    return np.asarray(cv2.convertScaleAbs(cv2.patchNaNs(grey, hidden), None, 255.0), np.uint8)


def _blend(picture: Picture, heat: NDArray[np.float32]) -> Picture:
    """Colour over picture, the more opaque the stronger the heat. heat: float32 (h, w) in 0..1."""
    level = cv2.convertScaleAbs(heat, None, _TOP_COLOUR)
    colours = cv2.cvtColor(cv2.applyColorMap(level, _COLOURS), cv2.COLOR_BGR2RGB)
    opacity = _FULL_OPACITY * np.minimum(heat, np.float32(1))
    return np.asarray(cv2.blendLinear(colours, picture, opacity, 1 - opacity), np.uint8)


def _letters(geometry: Geometry) -> tuple[str, str]:
    """The patient's sides at the left and at the right of the picture."""
    names = ("L", "R") if geometry.flipped_horizontally else ("R", "L")
    if geometry.transposed:  # the upright image's left and right are the picture's top and bottom
        names = (f"{names[0]} top", f"{names[1]} bottom")
    return names


def _header(letters: tuple[str, str], width: int, text: str = "") -> Picture:
    """The patient's sides and a title, above the picture, so that no film marker is hidden."""
    header = np.zeros((round(_HEADER * width), width, 3), np.uint8)
    baseline, size = round(0.034 * width), max(8, round(0.034 * width))
    _text(header, letters[0], (round(0.025 * width), baseline), size, _WHITE, _BOLD)
    _text(header, letters[1], (round(0.975 * width), baseline), size, _WHITE, _BOLD, "right")
    _text(header, text, (width // 2, round(0.031 * width)), max(6, round(0.026 * width)), _AMBER, _BOLD, "centre")
    return header


def _panel(findings: Findings, width: int, said: Sequence[str], height: int) -> Picture:
    """The findings in words and numbers. Sizes are fractions of the width, so that all overlays look alike.

    `said`: the notes, each in a line of its own.
    """
    panel = np.zeros((height, width, 3), np.uint8)

    def at(x: float, y: float) -> tuple[int, int]:
        return round(x * width), round(y * width)

    def size(share: float) -> int:
        return max(6, round(share * width))

    cv2.line(panel, (0, 0), (width, 0), _DARK, 1)
    named = findings.answer if findings.answer in findings.probabilities else None
    _text(panel, title(findings), at(0.025, 0.05), size(0.042), _WHITE, _BOLD, room=round(0.467 * width))
    if named:
        _text(panel, f"{findings.probabilities[named]:.0%}", at(0.625, 0.05), size(0.042), _WHITE, _BOLD, "right")
    else:
        _text(panel, findings.indeterminate_reason, at(0.025, 0.0665), size(0.0145), _LIGHT, _REGULAR)
    model = f"{findings.model.name} {findings.model.version}"
    room = round(0.295 * width)
    _text(panel, model, at(0.975, 0.035), size(0.021), _LIGHT, _REGULAR, "right", room)
    _text(panel, f"{MODEL_NAME} {program_version()}", at(0.975, 0.062), size(0.0175), _DIM, _REGULAR, "right")
    pitch = 0.03 * len(LABELS) / max(len(LABELS), len(findings.probabilities))
    for row, label in enumerate(findings.probabilities):
        y = 0.088 + pitch * row
        colour, weight = (_WHITE, _BOLD) if label == named else (_LIGHT, _REGULAR)
        _text(panel, title_of(label, findings.model), at(0.025, y), size(0.7 * pitch), colour, weight)
        left, right = 0.268, 0.53
        cv2.rectangle(panel, at(left, y - 0.47 * pitch), at(right, y), _DARK, cv2.FILLED)
        filled = left + (right - left) * findings.probabilities[label]
        cv2.rectangle(panel, at(left, y - 0.47 * pitch), at(filled, y), _BAR if label == named else _DIM, cv2.FILLED)
        _text(panel, f"{findings.probabilities[label]:.1%}", at(0.625, y), size(0.7 * pitch), colour, weight, "right")
    for row, line in enumerate(said):
        _text(panel, line, at(0.025, _PANEL + 0.014 + _NOTE * row), size(0.021), _AMBER, _BOLD, room=round(0.95 * width))
    _text(panel, "Heat: what the answer rests on, 0 to 1", at(0.68, 0.105), size(0.0185), _LIGHT, _REGULAR, room=room)
    _colour_bar(panel, at(0.68, 0.116), at(0.975, 0.144))
    for tick, x, side in ((0, 0.68, "left"), (0.5, 0.8275, "centre"), (1, 0.975, "right")):
        _text(panel, f"{tick:g}", at(x, 0.166), size(0.0185), _LIGHT, _REGULAR, side)
    return panel


def _colour_bar(panel: Picture, top_left: tuple[int, int], bottom_right: tuple[int, int]) -> None:
    """Heat 0 to 1 as it looks over a mid-grey radiograph."""
    (left, top), (right, bottom) = top_left, bottom_right
    bar = np.full((bottom - top, right - left, 3), 128, np.uint8)
    heat = np.broadcast_to(np.linspace(0, 1, right - left, dtype=np.float32), bar.shape[:2])
    panel[top:bottom, left:right] = _blend(bar, np.ascontiguousarray(heat))


def _text(
    picture: Picture,
    text: str,
    origin: tuple[int, int],
    size: int,
    colour: _Colour,
    weight: int,
    side: str = "left",
    room: int | None = None,
) -> None:
    """Text on its baseline, left of, centred on or right of `origin` (x, y); smaller if it needs more than `room`."""
    font = cv2.FontFace("sans")

    def extent() -> int:
        return int(cv2.getTextSize((0, 0), text, (0, 0), font, size, weight)[2])

    while room is not None and size > 4 and extent() > room:
        size -= 1
    x, y = origin
    if side != "left":
        x -= extent() if side == "right" else extent() // 2
    cv2.putText(picture, text, (x, y), colour, font, size, weight)
