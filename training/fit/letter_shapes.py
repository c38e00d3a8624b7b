"""Letters, words and shapes of a letter's size as masks, in many fonts, sizes and turns: what `letter_pictures` draws."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cxr_node.nets.constants import LETTER_CLASSES

_OTHERS = "ABCDEFGHIJKMNOPQSTUVWXYZBKPDAHEFJIUabcdefghijklmnopqrstuvwxyz0123456789[]()<>+-/#?!7V17CEFZ"
_WORDS = (
    "AP",
    "PA",
    "RL",
    "LR",
    "PORTABLE",
    "ERECT",
    "RIGHT",
    "LEFT",
    "SUPINE",
    "KV80",
    "mAs",
    "LAT",
    "ER",
    "LL",
    "RT",
    "CLINOSTASI",
)
_PLAIN_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSerif", "DejaVuSerif-Bold"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic"),
    *("cmr10", "cmb10", "cmss10", "cmtt10"),
)
"""Of those that come with matplotlib, whose licences allow it."""

Picture = NDArray[np.float32]


def load_fonts() -> list[Path | None]:
    """Font files; None stands for Pillow's own font."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return [None, None, *(folder / f"{name}.ttf" for name in _PLAIN_FONTS)]


def glyph(name: int, fonts: list[Path | None], rng: np.random.Generator) -> Picture:
    """The mask of a letter, 0..1, or of one of the things that are none."""
    size = float(np.exp(rng.uniform(np.log(15), np.log(78))))
    kind = rng.random()
    if name == 0 and kind < 0.35:
        mask = _scribble(size, rng)
    else:
        text = LETTER_CLASSES[name][-1]
        if name == 0:
            text = str(rng.choice(_WORDS)) if kind < 0.5 else str(rng.choice(list("RL" if kind > 0.9 else _OTHERS)))
            size = min(size, 24) if len(text) > 2 else size
        mask = written(text, size, fonts, rng)
    turned = name == 0 and kind > 0.9  # letters that lie on their side or head tell nothing
    angle = rng.choice((90, 180, 270)) + rng.uniform(-30, 30) if turned else rng.normal(0, 12)
    mask = _warped(mask, float(np.clip(angle, -32, 32)) if not turned else float(angle), rng)
    if LETTER_CLASSES[name].startswith("mirrored") or (name == 0 and rng.random() < 0.3):
        mask = np.ascontiguousarray(mask[:, ::-1])
    blur = rng.uniform(0, 0.06) * size
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), blur), np.float32) if blur > 0.4 else mask


def written(text: str, size: float, fonts: list[Path | None], rng: np.random.Generator) -> Picture:
    """Text whose capitals are about so many pixels high."""
    width = int(size * (len(text) + 1.5))
    if rng.random() < 0.15:
        canvas = np.zeros((int(size * 2.4), width), np.uint8)
        font = int(
            rng.choice((cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_TRIPLEX))
        )
        stroke = max(1, round(size * rng.uniform(0.06, 0.2)))
        cv2.putText(canvas, text, (int(size * 0.4), int(size * 1.7)), font, size / 22, 255, stroke, cv2.LINE_AA)
        return canvas.astype(np.float32) / np.float32(255)
    path = fonts[int(rng.integers(len(fonts)))]
    font_px = size * 1.38
    drawn = ImageFont.load_default(font_px) if path is None else ImageFont.truetype(str(path), font_px)
    image = Image.new("L", (width, int(size * 2.4)))
    pen = ImageDraw.Draw(image)
    outline = rng.random() < 0.08 and size > 30
    stroke = max(1, round(size * 0.05)) if rng.random() < 0.25 or outline else 0
    where = (size * 0.5, size * 0.4)
    pen.text(where, text, fill=0 if outline else 255, font=drawn, stroke_width=stroke, stroke_fill=255)
    return np.asarray(image, np.float32) / np.float32(255)


def _scribble(size: float, rng: np.random.Generator) -> Picture:
    """Corners, arcs, rings, crosses, arrows and wires of a letter's size."""
    side = int(size * 2.2)
    canvas = np.zeros((side, side), np.uint8)
    stroke = max(1, round(size * rng.uniform(0.06, 0.28)))
    low, high = side * 0.25, side * 0.75
    kind = int(rng.integers(6))
    if kind == 0:
        axes = (int(size * rng.uniform(0.2, 0.5)), int(size * rng.uniform(0.2, 0.5)))
        start = float(rng.uniform(0, 360))
        end = start + float(rng.choice((360, rng.uniform(90, 330))))
        cv2.ellipse(canvas, (side // 2, side // 2), axes, float(rng.uniform(0, 180)), start, end, 255, stroke, cv2.LINE_AA)
    elif kind == 1:
        tail, head = rng.uniform(low, high, (2, 2)).astype(int)
        cv2.arrowedLine(canvas, tuple(map(int, tail)), tuple(map(int, head)), 255, stroke, cv2.LINE_AA, 0, 0.4)
    elif kind == 2:  # a corner with an angle or arms that no L has
        arms = rng.uniform(0.25, 0.6, 2) * size
        first = rng.uniform(0, 2 * np.pi)
        second = first + rng.choice((rng.uniform(0.35, 1.05), rng.uniform(2.1, 2.8)))
        middle = np.array([side / 2, side / 2])
        ends = [middle + arm * np.array([np.cos(turn), np.sin(turn)]) for arm, turn in zip(arms, (first, second), strict=True)]
        bend = np.rint([ends[0], middle, ends[1]]).astype(np.int32)
        cv2.polylines(canvas, [bend], isClosed=False, color=255, thickness=stroke, lineType=cv2.LINE_AA)
    else:
        points = rng.uniform(low, high, (int(rng.integers(2, 7)), 2)).astype(np.int32)
        if kind == 3:
            cv2.fillPoly(canvas, [points], 255, cv2.LINE_AA)
        cv2.polylines(canvas, [points], isClosed=kind == 4, color=255, thickness=stroke, lineType=cv2.LINE_AA)
    return canvas.astype(np.float32) / np.float32(255)


def _warped(mask: Picture, angle: float, rng: np.random.Generator) -> Picture:
    height, width = mask.shape
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1.0)
    shape = np.array([[np.exp(rng.normal(0, 0.13)), rng.normal(0, 0.08), 0], [0, 1, 0], [0, 0, 1]])
    shape[0, 2] = width / 2 - shape[0, 0] * width / 2 - shape[0, 1] * height / 2
    return np.asarray(cv2.warpAffine(mask, matrix @ shape, (width, height), flags=cv2.INTER_LINEAR), np.float32)
