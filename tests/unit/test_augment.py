"""Changes that a network must not care about change what they say and nothing else."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from training.fit.augment import frame, swap_surroundings, transfer_sharpness


class UpperBound:
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
    assert np.abs(transfer_sharpness(image, image, UpperBound()).astype(int) - image).max() <= 1


@pytest.mark.parametrize(("own_px", "other_px"), [(0.8, 1.2), (1.2, 0.8)])
def test_a_borrowed_sharpness_is_the_other_s(own_px, other_px):
    image, other = grain(1, own_px), grain(2, other_px)
    borrowed = transfer_sharpness(image, other, UpperBound())
    assert fine_share(borrowed) == pytest.approx(fine_share(other), rel=0.15)
    assert fine_share(image) != pytest.approx(fine_share(other), rel=0.4)


def test_what_borrows_sharpness_keeps_its_anatomy_and_its_mean():
    image, other = grain(1, 0.8), grain(2, 1.4)
    borrowed = transfer_sharpness(image, other, UpperBound())
    assert np.corrcoef(cv2.GaussianBlur(image, (0, 0), 1.2).ravel(), borrowed.ravel())[0, 1] > 0.9
    assert borrowed.mean() == pytest.approx(image.mean(), abs=1.0)
    assert abs(np.corrcoef(other.ravel(), borrowed.ravel())[0, 1]) < 0.1


class Midpoint:
    """Stands for a generator that always draws the middle."""

    def uniform(self, low: float, high: float) -> float:
        return (low + high) / 2


def lungs_at(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Bool (96, 96), True in each box of top, bottom, left, right."""
    mask = np.zeros((96, 96), np.bool_)
    for top, bottom, left, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


def test_a_framed_image_is_cut_between_its_edges_and_the_lungs():
    lungs = lungs_at((20, 76, 16, 40), (20, 76, 56, 80))
    image = np.where(lungs, 40, 200).astype(np.uint8)
    closest, closest_lungs = frame(image, lungs, UpperBound())
    assert closest_lungs.mean() > lungs.mean() * 1.8
    assert closest_lungs[5:-5, 8:30].all()
    assert not closest_lungs[:, 46:50].any()
    halfway, halfway_lungs = frame(image, lungs, Midpoint())
    assert lungs.mean() < halfway_lungs.mean() < closest_lungs.mean()
    for picture, mask in ((closest, closest_lungs), (halfway, halfway_lungs)):
        assert picture.shape == image.shape
        inner = cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
        assert (picture[inner] == 40).all()


def test_without_lungs_there_is_nothing_to_frame_by():
    image = grain(3)
    framed, lungs = frame(image, np.zeros((96, 96), np.bool_), UpperBound())
    assert np.array_equal(framed, image)
    assert not lungs.any()


def test_lungs_come_into_another_s_surroundings_at_the_other_s_place():
    own, others = lungs_at((10, 50, 10, 30), (10, 50, 50, 70)), lungs_at((30, 90, 20, 40), (30, 90, 60, 80))
    image = np.where(own, 60, 140).astype(np.uint8)
    image[20:30, 12:28] = 110  # a shadow in the upper third of the lung on the picture's left
    other = np.where(others, 250, 140).astype(np.uint8)
    other[:12] = 20  # what only the other has, far from its lungs
    mixed, lungs = swap_surroundings(image, own, other, others)
    assert (lungs == others).mean() > 0.97
    assert np.abs(mixed[:10].astype(int) - other[:10]).max() <= 2
    inner = cv2.erode(others.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    assert mixed[inner].max() <= 115  # nothing is left of the other's lungs
    assert mixed[48:58, 24:36].mean() > mixed[75:85, 24:36].mean() + 30  # the shadow is where it was in the lung
    assert mixed[48:58, 64:76].mean() < 75


def test_lungs_are_brought_to_the_greys_around_the_other_s():
    lungs = lungs_at((20, 76, 16, 40), (20, 76, 56, 80))
    dark, light = (np.where(lungs, 30, 90).astype(np.uint8), np.where(lungs, 120, 180).astype(np.uint8))
    mixed, _ = swap_surroundings(dark, lungs, light, lungs)
    assert np.abs(mixed.astype(int) - light).max() <= 2


@pytest.mark.parametrize("lacking", [0, 1])
def test_without_lungs_surroundings_stay(lacking):
    image, lungs = grain(4), [lungs_at((20, 76, 16, 40)), lungs_at((20, 76, 16, 40))]
    lungs[lacking][:] = False
    mixed, kept = swap_surroundings(image, lungs[0], grain(5), lungs[1])
    assert np.array_equal(mixed, image)
    assert np.array_equal(kept, lungs[0])
