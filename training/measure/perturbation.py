"""Perturbation tests of an explanation: remove its most relevant pixels, and classify again (CXRNet eq. 12).

The probability perturbation curve (PPC) of the paper's section IV-B is p(f(x)) over x = 0, 0.1 … 1, "the procedure in
which all the pixels with a value of x were replaced with zeros". How f(x) is read here, and why:

- Importance is a pixel's value in the explanation, brought to 0..1 over the lungs of its image. What lies outside the
  lungs is black already, so nothing can be removed there, and no method gains or loses by it. (Where a classifier of
  whole images is explained, read "the image" for "the lungs", here and below.)
- Removal starts "from the pixels with high values" and "x started from 1 to 0" names the value that is just being
  removed, while "f(0) means no change" counts the other way round. Both hold if x is how far the removal has come:
  f(x) removes every pixel whose importance is at least 1 - x, so that f(0) is the image and f(0.1) is it without the
  pixels from 0.9 up.
- Removal is cumulative: what was removed stays removed. The paper calls it "different portions of removals" and expects a
  larger portion to cost more; removing one band of values at a time would leave the most important pixels in place for
  nine of its ten points.
- x is a value, not a share of the pixels: the paper speaks of values throughout. An explanation that calls nearly
  everything unimportant therefore removes little and scores low. The deletion and insertion curves (Petsiuk et al.
  2018), which rank the pixels and go by share, don't depend on how values are spread and are given beside it.
- f(1) removes all lungs, whatever the explanation: the last of the ten points is the same for every method.

AOPPC is then the mean of p(f(0)) - p(f(x)) over x = 0.1, 0.2 … 1 and over the images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEPS = tuple(step / 10 for step in range(1, 11))
"""The paper's ten x."""

_ROUNDING = 1e-6


def normalised(heat: NDArray[np.float32], lungs: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Bring an explanation's values to 0..1 within the lungs.

    Args:
        heat: float32 (H, W).
        lungs: bool (H, W).

    Returns:
        float32 (H, W), 0 outside the lungs; all 0 where the explanation is the same everywhere.
    """
    if not lungs.any():
        return np.zeros(heat.shape, np.float32)
    low, high = float(heat[lungs].min()), float(heat[lungs].max())
    if high <= low:
        return np.zeros(heat.shape, np.float32)
    return np.where(lungs, (heat - low) / (high - low), 0).astype(np.float32)


def perturbed(image: NDArray[np.uint8], importance: NDArray[np.float32], x: float) -> NDArray[np.uint8]:
    """f(x): the image without the pixels whose importance is at least 1 - x (see above).

    Args:
        image: uint8 (H, W).
        importance: float32 (H, W) in 0..1, from `normalised`.
        x: 0 (nothing is removed) to 1 (everything is).

    Returns:
        uint8 (H, W), 0 where removed.
    """
    if x <= 0:
        return image.copy()
    return np.where(importance >= 1 - x - _ROUNDING, 0, image).astype(np.uint8)


def aoppc(curves: NDArray[np.float64]) -> float:
    """Area over the perturbation curves (CXRNet eq. 12), the outer 1/n of its sum over images, lost in print, included.

    Args:
        curves: float64 (N, 11), each row p(f(0)), p(f(0.1)) … p(f(1)) of one image.
    """
    return float((curves[:, :1] - curves[:, 1:]).mean())


def by_rank(importance: NDArray[np.float32], lungs: NDArray[np.bool_], seed: int = 0) -> NDArray[np.float32]:
    """Share of the lungs' pixels that are more important than each: 0 the most important, near 1 the least.

    Pixels of the same importance come in an order drawn at random, so that none gains by where it lies.

    Returns:
        float32 (H, W) in 0..1; 1 outside the lungs.
    """
    places = np.flatnonzero(lungs)
    tie_break = np.random.default_rng(seed).random(places.size)
    order = np.lexsort((tie_break, -importance.ravel()[places]))
    ranks = np.ones(lungs.size, np.float32)
    ranks[places[order]] = np.arange(places.size) / max(1, places.size)
    return ranks.reshape(lungs.shape)


def deleted(image: NDArray[np.uint8], ranks: NDArray[np.float32], share: float) -> NDArray[np.uint8]:
    """The image without the most important `share` (0..1) of the lungs; `ranks` from `by_rank`."""
    return np.where(ranks < share - _ROUNDING, 0, image).astype(np.uint8)


def inserted(image: NDArray[np.uint8], ranks: NDArray[np.float32], share: float) -> NDArray[np.uint8]:
    """The most important `share` (0..1) of the lungs alone."""
    return np.where(ranks < share - _ROUNDING, image, 0).astype(np.uint8)


def area_under(curves: NDArray[np.float64]) -> float:
    """Mean area under curves, float64 (N, K), over equal steps of x from 0 to 1, by trapezoids."""
    return float(((curves[:, 1:] + curves[:, :-1]) / 2).mean())


def correlation(heat: NDArray[np.float32], image: NDArray[np.uint8], lungs: NDArray[np.bool_]) -> float:
    """Pearson's correlation of an explanation with the image inside the lungs, -1..1; 0 where one of them is flat.

    An explanation near 1 says only where the image is bright.
    """
    if np.count_nonzero(lungs) < 2:
        return 0.0
    one, other = heat[lungs].astype(np.float64), image[lungs].astype(np.float64)
    spread = float(one.std() * other.std())
    return float(((one - one.mean()) * (other - other.mean())).mean() / spread) if spread > 0 else 0.0
