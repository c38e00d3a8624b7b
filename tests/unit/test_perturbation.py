"""The perturbation curve and its area against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from training.measure.explain import aoppc, perturbed
from training.measure.perturbation import STEPS, area_under, by_rank, correlation, deleted, inserted, normalised

IMAGE = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)
IMPORTANCE = np.array([[1.0, 0.9, 0.75], [0.5, 0.05, 0.0]], np.float32)
LUNGS = np.array([[True, True, True], [True, True, False]])


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (0.0, [[10, 20, 30], [40, 50, 60]]),  # f(0) is no change, even of the pixel that is worth 1
        (0.05, [[0, 20, 30], [40, 50, 60]]),  # from 0.95 up
        (0.1, [[0, 0, 30], [40, 50, 60]]),  # from 0.9 up
        (0.3, [[0, 0, 0], [40, 50, 60]]),  # what is gone stays gone
        (0.5, [[0, 0, 0], [0, 50, 60]]),
        (0.9, [[0, 0, 0], [0, 50, 60]]),
        (1.0, [[0, 0, 0], [0, 0, 0]]),  # everything
    ],
)
def test_f_of_x_removes_what_is_worth_at_least_1_minus_x(x, expected):
    assert perturbed(IMAGE, IMPORTANCE, x).tolist() == expected


def test_f_of_x_leaves_the_image_itself_alone():
    perturbed(IMAGE, IMPORTANCE, 0.0)[0, 0] = 99
    assert IMAGE[0, 0] == 10


def test_each_of_the_ten_steps_takes_the_pixels_of_its_value():
    importance = np.array([[1 - step for step in STEPS]], np.float32)  # 0.9, 0.8 … 0
    image = np.full(importance.shape, 7, np.uint8)
    assert [int((perturbed(image, importance, step) == 0).sum()) for step in STEPS] == list(range(1, 11))


def test_area_over_the_curve_is_the_mean_drop():
    # one image loses everything at once, the other nothing before x = 1: drops of 0.8 ten times, of 0.6 once
    at_once = [0.9] + [0.1] * 10
    late = [0.6] * 10 + [0.0]
    assert aoppc(np.array([at_once])) == pytest.approx(0.8)
    assert aoppc(np.array([late])) == pytest.approx(0.06)
    assert aoppc(np.array([at_once, late])) == pytest.approx((0.8 + 0.06) / 2)


def test_a_rising_probability_counts_against_an_explanation():
    assert aoppc(np.array([[0.5] + [0.7] * 10])) == pytest.approx(-0.2)


def test_values_are_spread_over_the_lungs_alone():
    heat = np.array([[2.0, 4.0, 3.0], [6.0, 2.0, 100.0]], np.float32)
    expected = [[0.0, 0.5, 0.25], [1.0, 0.0, 0.0]]
    assert np.allclose(normalised(heat, LUNGS), expected)


def test_an_explanation_that_is_the_same_everywhere_calls_nothing_important():
    assert not normalised(np.full((2, 3), 5, np.float32), LUNGS).any()
    assert not normalised(IMPORTANCE, np.zeros((2, 3), bool)).any()


def test_ranks_are_shares_of_the_lungs_before_a_pixel():
    ranks = by_rank(IMPORTANCE, LUNGS)
    assert np.allclose(ranks, [[0, 0.2, 0.4], [0.6, 0.8, 1]])
    assert deleted(IMAGE, ranks, 0.4).tolist() == [[0, 0, 30], [40, 50, 60]]
    assert inserted(IMAGE, ranks, 0.4).tolist() == [[10, 20, 0], [0, 0, 0]]


def test_deleting_nothing_and_inserting_all_leave_the_lungs():
    ranks = by_rank(IMPORTANCE, LUNGS)
    assert (deleted(IMAGE, ranks, 0.0) == IMAGE).all()
    assert (inserted(IMAGE, ranks, 1.0)[LUNGS] == IMAGE[LUNGS]).all()
    assert not inserted(IMAGE, ranks, 0.0).any()
    assert not deleted(IMAGE, ranks, 1.0)[LUNGS].any()


def test_pixels_of_equal_importance_don_t_go_from_the_top_down():
    lungs = np.ones((20, 20), bool)
    removed = deleted(np.ones((20, 20), np.uint8), by_rank(np.zeros((20, 20), np.float32), lungs), 0.5) == 0
    assert removed.sum() == 200
    assert 60 < removed[:10].sum() < 140


def test_area_under_a_curve_by_trapezoids():
    assert area_under(np.array([[1.0] * 11])) == pytest.approx(1)
    assert area_under(np.array([np.linspace(1, 0, 11)])) == pytest.approx(0.5)
    assert area_under(np.array([[1.0] + [0.0] * 10])) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("heat", "expected"),
    [
        (IMAGE.astype(np.float32) / 7, 1.0),
        (-IMAGE.astype(np.float32), -1.0),
        (np.ones((2, 3), np.float32), 0.0),
        # over 10, 20, 30, 40, 50 the heat 0, 0, 1, 0, 0 is symmetric
        (np.array([[0, 0, 1], [0, 0, 9]], np.float32), 0.0),
    ],
)
def test_correlation_with_the_image_inside_the_lungs(heat, expected):
    assert correlation(heat, IMAGE, LUNGS) == pytest.approx(expected, abs=1e-6)
