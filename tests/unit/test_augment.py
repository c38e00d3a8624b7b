"""Changes that a network must not care about change what they say and nothing else."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from training.augment import borrow_sharpness


class AllTheWay:
    """Stands for a generator that always draws the upper end."""

    def uniform(self, low: float, high: float) -> float:
        del low
        return high


def grain(seed: int, sigma: float = 0.0) -> np.ndarray:
    """Grey noise around 128, uint8 (96, 96), blurred by `sigma` pixels."""
    noise = np.random.default_rng(seed).normal(128, 25, (96, 96)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), sigma) if sigma else noise
    return np.clip(noise, 0, 255).astype(np.uint8)


def fine_share(image: np.ndarray) -> float:
    """How much of an image's variance is finer than 2 pixels."""
    grey = image.astype(np.float32)
    return float((grey - cv2.GaussianBlur(grey, (0, 0), 2.0)).var())


def test_an_image_that_borrows_its_own_sharpness_stays_as_it_is():
    image = grain(1, 1.0)
    assert np.abs(borrow_sharpness(image, image, AllTheWay()).astype(int) - image).max() <= 1


@pytest.mark.parametrize(("own_px", "other_px"), [(0.8, 1.2), (1.2, 0.8)])
def test_a_borrowed_sharpness_is_the_other_s(own_px, other_px):
    image, other = grain(1, own_px), grain(2, other_px)
    borrowed = borrow_sharpness(image, other, AllTheWay())
    assert fine_share(borrowed) == pytest.approx(fine_share(other), rel=0.15)
    assert fine_share(image) != pytest.approx(fine_share(other), rel=0.4)


def test_what_borrows_sharpness_keeps_its_anatomy_and_its_mean():
    image, other = grain(1, 0.8), grain(2, 1.4)
    borrowed = borrow_sharpness(image, other, AllTheWay())
    assert np.corrcoef(cv2.GaussianBlur(image, (0, 0), 1.2).ravel(), borrowed.ravel())[0, 1] > 0.9
    assert borrowed.mean() == pytest.approx(image.mean(), abs=1.0)
    assert abs(np.corrcoef(other.ravel(), borrowed.ravel())[0, 1]) < 0.1
