"""Random augmentations of a prepared radiograph to which a network should be invariant.

Besides position, they cover contrast, sharpness, borders and letters, in which hospitals differ more than diseases. Every
function maps uint8 (H, W) in 0..255 to the same, with random numbers from the given generator.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_node.analyse.enhance import lung_box

Image = NDArray[np.uint8]


def move(
    image: Image, mask: NDArray[np.bool_], rng: np.random.Generator, degrees: float = 10, zoom: float = 0.15, shift: float = 0.08
) -> tuple[Image, NDArray[np.bool_]]:
    """Rotate, zoom each axis and shift image and mask (bool (H, W)) together."""
    height, width = image.shape
    angle = np.deg2rad(rng.uniform(-degrees, degrees))
    zoom_x, zoom_y = np.exp(rng.uniform(-zoom, zoom, 2))
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos * zoom_x, -sin * zoom_y], [sin * zoom_x, cos * zoom_y]])
    centre = np.array([width, height]) / 2
    offset = centre - turn @ centre + rng.uniform(-shift, shift, 2) * (width, height)
    matrix = np.hstack([turn, offset[:, None]])
    moved = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    moved_mask = cv2.warpAffine(mask.astype(np.float32), matrix, (width, height), flags=cv2.INTER_LINEAR)
    return np.asarray(moved, np.uint8), moved_mask >= 0.5


def regrade(image: Image, rng: np.random.Generator) -> Image:
    """Change gamma, contrast and brightness, as another detector or window would."""
    grey = np.arange(256, dtype=np.float32) / 255
    curve = grey ** np.exp(rng.uniform(-0.45, 0.45))
    curve = (curve - 0.5) * np.exp(rng.uniform(-0.3, 0.3)) + 0.5 + rng.uniform(-0.1, 0.1)
    return np.asarray(cv2.LUT(image, np.clip(curve * 255, 0, 255).astype(np.uint8)), np.uint8)


def resharpen(image: Image, rng: np.random.Generator) -> Image:
    """Blur, sharpen, add noise or compress, as another detector or archive would."""
    kind = rng.integers(5)
    if kind == 0:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.3)), np.uint8)
    if kind == 1:
        soft = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.8, 2.0))
        amount = rng.uniform(0.2, 1.0)
        return np.asarray(cv2.addWeighted(image, 1 + amount, soft, -amount, 0), np.uint8)
    if kind == 2:
        noise = rng.normal(0, rng.uniform(2, 9), image.shape).astype(np.float32)
        return np.asarray(np.clip(image + noise, 0, 255), np.uint8)
    if kind == 3:
        _, packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 90))])
        return np.asarray(cv2.imdecode(packed, cv2.IMREAD_GRAYSCALE), np.uint8)
    return image


def transfer_sharpness(image: Image, other: Image, rng: np.random.Generator) -> Image:
    """Give the image as much of each fineness of detail as another radiograph, uint8 (H, W), has, or part of the way.

    Detector, processing and compression leave their mark in how strong each spatial frequency is; where it is, which is
    the anatomy, stays. The mean grey stays too (cf. Yang and Soatto 2020, who exchange whole amplitudes).
    """
    height, width = image.shape
    spectrum = np.fft.rfft2(image.astype(np.float32))
    radius = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width) * width).astype(int)
    own, others = (
        np.bincount(radius.ravel(), np.abs(each).ravel()) + 1.0 for each in (spectrum, np.fft.rfft2(other.astype(np.float32)))
    )
    gain = np.clip(others / own, 0.25, 4.0) ** rng.uniform(0, 1)
    gain[0] = 1.0
    return np.clip(np.fft.irfft2(spectrum * gain[radius], image.shape), 0, 255).astype(np.uint8)


def frame(image: Image, lungs: NDArray[np.bool_], rng: np.random.Generator) -> tuple[Image, NDArray[np.bool_]]:
    """Cut image and lungs (bool (H, W)) anywhere between their edges and the lungs' box, and stretch what is left to (H, W).

    How a film is collimated and cropped says something of the hospital and of who could stand up for it.
    """
    height, width = lungs.shape
    box = lung_box(lungs, 0.02)
    top, bottom, left, right = (
        round(edge + (of_lungs - edge) * rng.uniform(0, 1)) for edge, of_lungs in zip((0, height, 0, width), box, strict=True)
    )
    cut, cut_lungs = image[top:bottom, left:right], lungs[top:bottom, left:right].astype(np.float32)
    framed = cv2.resize(cut, (width, height), None, 0, 0, cv2.INTER_LINEAR)
    return np.asarray(framed, np.uint8), cv2.resize(cut_lungs, (width, height), None, 0, 0, cv2.INTER_LINEAR) >= 0.5


def swap_surroundings(
    image: Image, lungs: NDArray[np.bool_], other: Image, other_lungs: NDArray[np.bool_]
) -> tuple[Image, NDArray[np.bool_]]:
    """Put the lungs (bool (H, W)) into what lies around another radiograph's, in the place of those and as large.

    Arms, neck, tubes and the way a film was taken then go with another class as often as with their own (cf. Xiao et al. 2021,
    who exchange backgrounds). Greys are brought to the other's by the mean around the lungs; the seam is soft. Without
    lungs in either, it stays as it is.
    """
    if not lungs.any() or not other_lungs.any():
        return image, lungs
    (top, bottom, left, right), (to_top, to_bottom, to_left, to_right) = lung_box(lungs, 0.0), lung_box(other_lungs, 0.0)
    across, down = (to_right - to_left) / (right - left), (to_bottom - to_top) / (bottom - top)
    matrix = np.array([[across, 0, to_left - across * left], [0, down, to_top - down * top]])
    size = (lungs.shape[1], lungs.shape[0])
    moved = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    placed = cv2.warpAffine(lungs.astype(np.float32), matrix, size, flags=cv2.INTER_LINEAR) >= 0.5
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))
    hidden = np.asarray(cv2.dilate((placed | other_lungs).astype(np.uint8), kernel), np.uint8)
    seam = cv2.dilate(hidden, kernel) > hidden
    shade = float(other[seam].mean()) - float(moved[seam].mean()) if seam.any() else 0.0
    weight = cv2.GaussianBlur(hidden.astype(np.float32), (0, 0), 2.5)
    mixed = weight * (moved.astype(np.float32) + shade) + (1 - weight) * other
    return np.clip(mixed, 0, 255).astype(np.uint8), placed


def decorate(image: Image, rng: np.random.Generator) -> Image:
    """Add borders, side letters or inverted greys at the margins, which say something of the hospital only."""
    image = image.copy()
    height, width = image.shape
    if rng.random() < 0.3:
        for edge in range(4):
            if rng.random() < 0.5:
                depth = int(rng.uniform(0, 0.08) * height)
                value = 0 if rng.random() < 0.8 else 255
                turned = np.rot90(image, edge)
                turned[:depth] = value
    if rng.random() < 0.3:
        text = rng.choice(["R", "L", "AP", "PA", "PORTABLE", "12:30"])
        place = (int(rng.uniform(0, 0.8) * width), int(rng.uniform(0.06, 0.2) * height))
        cv2.putText(image, str(text), place, cv2.FONT_HERSHEY_SIMPLEX, rng.uniform(0.3, 0.9), 255, int(rng.integers(1, 3)))
    return image
