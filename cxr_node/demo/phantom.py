"""Draws a frontal chest phantom, to try the node out without radiographs.

Anatomy is placed in fractions of the picture, summed as attenuation, and displayed like a film. The phantom is just realistic
enough for a network trained on real radiographs to find the two lungs. Its margin labels it as a phantom.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

LABEL = "PHANTOM - NOT A PATIENT"

_WIDTH, _HEIGHT = 1104, 1184
_MARGIN_PX = 48
"""Black strip below the picture that holds the label."""

Layer = NDArray[np.float32]
Points = Sequence[tuple[float, float]]

# Outlines as (u, v): u from -1, the patient's right, to 1; v from 0, the top, to 1.
_RIGHT_LUNG: Points = (
    *((-0.29, 0.125), (-0.43, 0.165), (-0.55, 0.25), (-0.645, 0.37), (-0.71, 0.50), (-0.755, 0.64), (-0.775, 0.76)),
    *((-0.765, 0.825), (-0.70, 0.785), (-0.58, 0.74), (-0.43, 0.715), (-0.29, 0.725), (-0.17, 0.765)),
    *((-0.155, 0.69), (-0.165, 0.60), (-0.13, 0.50), (-0.105, 0.40), (-0.10, 0.30), (-0.13, 0.20), (-0.19, 0.14)),
)
_LEFT_LUNG: Points = (
    *((0.29, 0.125), (0.43, 0.165), (0.55, 0.25), (0.645, 0.37), (0.71, 0.50), (0.755, 0.64), (0.775, 0.78)),
    *((0.765, 0.85), (0.70, 0.81), (0.60, 0.775), (0.51, 0.765), (0.44, 0.78)),
    *((0.425, 0.72), (0.375, 0.635), (0.29, 0.555), (0.20, 0.50), (0.155, 0.45), (0.17, 0.385), (0.165, 0.345)),
    *((0.115, 0.30), (0.13, 0.20), (0.19, 0.14)),
)
_HEART: Points = (
    *((-0.155, 0.58), (-0.17, 0.66), (-0.14, 0.76), (0.05, 0.815), (0.28, 0.81), (0.42, 0.755)),
    *((0.40, 0.67), (0.33, 0.59), (0.22, 0.51), (0.10, 0.46), (-0.05, 0.47)),
)
_AORTA: Points = (
    (-0.02, 0.36),
    (0.06, 0.32),
    (0.14, 0.325),
    (0.17, 0.365),
    (0.15, 0.42),
    (0.11, 0.60),
    (0.05, 0.60),
    (0.05, 0.42),
)
_BODY_HALF_WIDTH = (
    (0.0, 0.30),
    (0.05, 0.34),
    (0.10, 0.58),
    (0.15, 0.88),
    (0.22, 1.06),
    (0.30, 1.04),
    (0.40, 0.93),
    (0.6, 0.90),
    (1.0, 0.95),
)


def chest_phantom(seed: int = 0, finding: Literal["right", "left"] | None = None) -> NDArray[np.uint16]:
    """A radiograph of an adult's chest, PA, upright.

    Args:
        seed: the same seed draws the same picture; build, heart, vessels and noise vary with it.
        finding: the patient's lung that gets a consolidation; the patient's right is on the image's left.

    Returns:
        uint16 (1232, 1104) of 12 bits, 0..4095, bright where X-rays are held back (MONOCHROME2).
    """
    rng = np.random.default_rng(seed)
    canvas = _Canvas(rng)
    body = canvas.body()
    lungs = {"right": canvas.area(_RIGHT_LUNG), "left": canvas.area(_LEFT_LUNG)}
    both = np.maximum(lungs["right"], lungs["left"])
    air = both * (0.42 + 0.58 * np.clip(2 * _blur(both, 42) - 1, 0, 1))
    heart, aorta = _blur(canvas.area(_HEART), 9), _blur(canvas.area(_AORTA), 5)
    below = np.clip((canvas.v - 0.62) / 0.20, 0, 1) * (1 - both)

    attenuation = body * (1.0 + 0.34 * below)
    attenuation = attenuation * (1 - 0.70 * air)
    attenuation += 0.20 * heart * (1 - 0.6 * below) + 0.10 * aorta
    attenuation += _mediastinum(canvas)
    attenuation += body * _bones(canvas)
    attenuation += air * _vessels(canvas) + 0.035 * both * _clouds(canvas, (10, 26))
    if finding is not None:
        attenuation += 0.46 * lungs[finding] * _consolidation(canvas, -1 if finding == "right" else 1)
    attenuation -= 0.20 * _blur(canvas.ellipse(0.47, 0.865, 0.13, 0.035), 7)  # air in the stomach
    return _expose(attenuation, body, rng)


class _Canvas:
    """Draws shapes given as fractions of the picture, for one person's build."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.breadth, self.length = 1 + 0.03 * rng.standard_normal(), 1 + 0.012 * rng.standard_normal()
        self.v, self.u = np.meshgrid(
            np.linspace(0, 1, _HEIGHT, dtype=np.float32), np.linspace(-1, 1, _WIDTH, dtype=np.float32), indexing="ij"
        )

    def to_px(self, points: Points) -> list[tuple[float, float]]:
        return [((1 + u * self.breadth) * _WIDTH / 2, v * self.length * _HEIGHT) for u, v in points]

    def draw(self, how: Callable[[ImageDraw.ImageDraw], None]) -> Layer:
        image = Image.new("L", (_WIDTH, _HEIGHT))
        how(ImageDraw.Draw(image))
        return np.asarray(image, np.float32) / np.float32(255)

    def area(self, points: Points) -> Layer:
        """A closed, smooth outline filled with 1, its edge a little soft."""
        outline = self.to_px(_smooth(points, closed=True))
        return _blur(self.draw(lambda pen: pen.polygon(outline, fill=255)), 2.5)

    def ellipse(self, u: float, v: float, half_width: float, half_height: float) -> Layer:
        corners = self.to_px([(u - half_width, v - half_height), (u + half_width, v + half_height)])
        return self.draw(lambda pen: pen.ellipse([*corners[0], *corners[1]], fill=255))

    def tubes(self, curves: Sequence[Points], width_px: float) -> Layer:
        """Hollow bones along curves: their edges are denser than their middle."""

        def stroke(pen: ImageDraw.ImageDraw) -> None:
            for curve in curves:
                line = self.to_px(_smooth(curve))
                pen.line(line, fill=255, width=round(width_px), joint="curve")
                pen.line(line, fill=150, width=round(width_px * 0.62), joint="curve")

        return _blur(self.draw(stroke), 2.2)

    def body(self) -> Layer:
        """Soft tissue without lungs: thick in the middle, thinning out towards the skin."""
        levels, half_widths = zip(*_BODY_HALF_WIDTH, strict=True)
        half_width = np.interp(self.v[:, 0], levels, half_widths).astype(np.float32) * self.breadth
        half_width = np.convolve(np.pad(half_width, 40, mode="edge"), np.ones(81) / 81, mode="valid").astype(np.float32)
        share = np.abs(self.u) / half_width[:, None]
        thickness = np.sqrt(np.clip(1 - share**2, 0, 1)) ** 0.7
        neck = 0.80 + 0.20 * np.clip(self.v / 0.2, 0, 1)
        return np.asarray(_blur(thickness, 2) * neck, np.float32)


def _smooth(points: Points, closed: bool = False, steps: int = 14) -> Points:
    """A Catmull-Rom curve through points."""
    ends = (points[-1], *points, points[0], points[1]) if closed else (points[0], *points, points[-1])
    knots = np.array(ends, np.float64)
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(knots, knots[1:], knots[2:], knots[3:], strict=False)
    ]
    curve = [(float(u), float(v)) for u, v in np.concatenate(pieces)]
    return curve if closed else [*curve, points[-1]]


def _blur(layer: Layer, radius_px: float) -> Layer:
    """Gaussian of that deviation; large ones as three passes of a box, which comes close."""
    if radius_px < 4:
        reach = int(np.ceil(3 * radius_px))
        kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / radius_px) ** 2)
        kernels = [kernel / kernel.sum()]
    else:
        kernels = [np.full(2 * round(radius_px) + 1, 1 / (2 * round(radius_px) + 1))] * 3
    blurred = layer.astype(np.float32)
    for kernel in kernels:
        blurred = _convolve_rows(_convolve_rows(blurred, kernel).T, kernel).T
    return np.ascontiguousarray(blurred)


def _convolve_rows(layer: Layer, kernel: NDArray[np.float64]) -> Layer:
    reach = len(kernel) // 2
    padded = np.pad(layer, ((0, 0), (reach, reach)), mode="edge")
    width = layer.shape[1]
    if np.ptp(kernel) == 0:  # a box: the difference of two running sums
        sums = np.cumsum(np.pad(padded, ((0, 0), (1, 0))), axis=1, dtype=np.float64)
        return np.asarray((sums[:, len(kernel) :] - sums[:, : -len(kernel)]) * kernel[0], np.float32)
    total = np.zeros(layer.shape, np.float32)
    for place, weight in enumerate(kernel):
        total += np.float32(weight) * padded[:, place : place + width]
    return total


def _mediastinum(canvas: _Canvas) -> Layer:
    """Spine with its discs, and the windpipe with its two branches."""
    column = np.exp(-((canvas.u / 0.085) ** 4))
    discs = 0.5 + 0.5 * np.cos(2 * np.pi * (canvas.v - 0.03) / 0.054)
    spine = column * (0.10 + 0.035 * np.sqrt(discs)) * np.clip(1.1 - 0.25 * canvas.v, 0, 1)
    soft = 0.10 * np.exp(-((canvas.u / 0.12) ** 4)) * np.clip((canvas.v - 0.12) / 0.1, 0, 1)

    def branches(pen: ImageDraw.ImageDraw) -> None:
        for line, width in (
            (((0.005, 0.0), (-0.005, 0.2), (0.0, 0.385)), 36),
            (((0.0, 0.38), (-0.07, 0.425), (-0.13, 0.46)), 24),
            (((0.0, 0.38), (0.08, 0.43), (0.17, 0.47)), 22),
        ):
            pen.line(canvas.to_px(_smooth(line)), fill=255, width=width, joint="curve")

    return np.asarray(spine + soft - 0.13 * _blur(canvas.draw(branches), 5), np.float32)


def _bones(canvas: _Canvas) -> Layer:
    back, front, collar, blade = [], [], [], []
    for side in (-1, 1):
        for number in range(10):
            level = 0.135 + 0.062 * number
            wall = float(np.interp(level + 0.05, (0.15, 0.25, 0.37, 0.50, 0.64, 0.80), (0.42, 0.57, 0.67, 0.73, 0.775, 0.80)))
            drop = 0.055 + 0.012 * number
            back.append(
                [
                    (side * (0.07 + (wall - 0.07) * t), level - 0.022 * np.sin(np.pi * min(1, 1.5 * t)) + drop * t**2.4)
                    for t in _STEPS
                ]
            )
            if 0 < number < 8:
                start = level + drop
                front.append([(side * (wall - (wall - 0.24) * t**1.15), start + 0.125 * np.sin(t * np.pi / 2)) for t in _STEPS])
        collar.append([(side * u, v) for u, v in ((0.06, 0.185), (0.18, 0.175), (0.34, 0.145), (0.50, 0.125), (0.66, 0.13))])
        blade.append(
            [(side * u, v) for u, v in ((0.60, 0.17), (0.63, 0.25), (0.68, 0.35), (0.76, 0.43), (0.83, 0.36), (0.88, 0.22))]
        )
    bones = 0.125 * canvas.tubes(back, 25) + 0.075 * canvas.tubes(front, 27) + 0.17 * canvas.tubes(collar, 34)
    bones += 0.05 * _blur(canvas.area(blade[0]) + canvas.area(blade[1]), 5)
    for side in (-1, 1):
        bones += 0.15 * _blur(canvas.ellipse(side * 0.93, 0.21, 0.085, 0.065), 5)  # head of the humerus
    return np.asarray(bones, np.float32)


_STEPS = tuple(np.linspace(0, 1, 9))


def _vessels(canvas: _Canvas) -> Layer:
    """Trees that grow from the hila, thinning at every fork."""
    rng = canvas.rng
    lines: list[tuple[list[tuple[float, float]], float]] = []

    def grow(x: float, y: float, angle: float, width: float, depth: int) -> None:
        line = [(x, y)]
        for _ in range(int(rng.integers(4, 7))):
            angle += rng.normal(0, 0.13)
            x, y = x + 16 * np.cos(angle), y + 16 * np.sin(angle)
            line.append((x, y))
        lines.append((line, width))
        if depth:
            for turn in (-0.42, 0.36):
                grow(x, y, angle + turn + rng.normal(0, 0.18), width * rng.uniform(0.55, 0.72), depth - 1)

    for side in (-1, 1):
        x, y = canvas.to_px([(side * 0.175, 0.455)])[0]
        for direction in np.linspace(-1.25, 1.35, 6):
            grow(x, y, direction if side > 0 else np.pi - direction, rng.uniform(8, 12), 4)

    def stroke(pen: ImageDraw.ImageDraw) -> None:
        for line, width in sorted(lines, key=lambda item: item[1]):
            pen.line(line, fill=int(np.clip(22 + 20 * width, 0, 255)), width=max(1, round(width)), joint="curve")

    hila = canvas.ellipse(-0.165, 0.465, 0.045, 0.055) + canvas.ellipse(0.185, 0.445, 0.045, 0.05)
    return np.asarray(0.24 * _blur(canvas.draw(stroke), 1.9) + 0.26 * _blur(hila, 12), np.float32)


def _clouds(canvas: _Canvas, radii_px: Sequence[float]) -> Layer:
    """Smooth random patches of mean 0 and deviation 1."""
    total = np.zeros(canvas.u.shape, np.float32)
    for radius in radii_px:
        patches = _blur(canvas.rng.standard_normal(canvas.u.shape).astype(np.float32), radius)
        total += patches / max(float(patches.std()), 1e-6)
    return np.asarray(total / len(radii_px) ** 0.5, np.float32)


def _consolidation(canvas: _Canvas, side: int) -> Layer:
    """Airspace filled with fluid: a patchy cloud in the middle and lower zone, 0..1."""
    u, v = (canvas.u - side * 0.46) / 0.24, (canvas.v - 0.58) / 0.135
    falloff = np.exp(-((u**2 + v**2) ** 1.3))
    return np.asarray(np.clip(falloff * (1.25 + 0.34 * _clouds(canvas, (12, 30))), 0, 1.15), np.float32)


def _expose(attenuation: Layer, body: Layer, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Attenuation to grey values: noisier where less comes through, flattened at both ends, with label and side marker."""
    noise = _blur(rng.standard_normal(attenuation.shape).astype(np.float32), 0.8)
    attenuation = attenuation + 0.022 * noise * np.exp(0.6 * attenuation)
    grey = np.clip((attenuation - 0.03) / 1.46, 0, 1)
    grey = np.where(body > 0.02, 0.04 + 0.96 * grey, 0.04 * np.clip(1 + 0.2 * noise, 0, 1))
    grey = grey**0.85
    picture = np.zeros((_HEIGHT + _MARGIN_PX, _WIDTH), np.float32)
    picture[:_HEIGHT] = grey
    letters = Image.new("L", (_WIDTH, _HEIGHT + _MARGIN_PX))
    pen = ImageDraw.Draw(letters)
    pen.text((_WIDTH / 2, _HEIGHT + _MARGIN_PX / 2), LABEL, fill=255, font=ImageFont.load_default(34), anchor="mm")
    pen.text((_WIDTH - 70, 60), "L", fill=255, font=ImageFont.load_default(60), anchor="mm")
    picture = np.maximum(picture, np.asarray(letters, np.float32) / 255 * 0.97)
    return np.asarray(np.rint(picture * 4095), np.uint16)
