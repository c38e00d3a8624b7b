"""The phantom is labelled, reproducible, and looks enough like a chest to be told apart into right and left."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_node.demo.phantom import chest_phantom
from cxr_node.prepare.quality import check_header
from cxr_node.prepare.radiograph import prepare_dataset
from cxr_node.prepare.wrap_picture import radiograph_from_image

# Rows and columns, as shares of the picture: the patient's right lung is on the image's left.
RIGHT_LUNG = (slice(0.30, 0.60), slice(0.18, 0.38))
LEFT_LUNG = (slice(0.30, 0.60), slice(0.68, 0.84))
HEART = (slice(0.55, 0.70), slice(0.52, 0.62))


def part(picture, place):
    rows, columns = (slice(int(s.start * size), int(s.stop * size)) for s, size in zip(place, picture.shape, strict=True))
    return picture[rows, columns]


@pytest.fixture(scope="module")
def healthy():
    return chest_phantom(seed=3)


def test_holds_12_bits_and_at_least_1024_pixels_a_side(healthy):
    assert healthy.dtype == np.uint16
    assert min(healthy.shape) >= 1024
    assert 3500 < healthy.max() <= 4095


def test_the_same_seed_draws_the_same_picture(healthy):
    assert np.array_equal(chest_phantom(seed=3), healthy)
    assert not np.array_equal(chest_phantom(seed=4), healthy)


def test_the_lungs_are_darker_than_the_heart_between_them(healthy):
    heart = part(healthy, HEART).mean()
    assert part(healthy, RIGHT_LUNG).mean() < 0.6 * heart
    assert part(healthy, LEFT_LUNG).mean() < 0.6 * heart


@pytest.mark.parametrize(("finding", "place", "other"), [("right", RIGHT_LUNG, LEFT_LUNG), ("left", LEFT_LUNG, RIGHT_LUNG)])
def test_a_finding_is_in_the_lung_that_was_named(finding, place, other, healthy):
    ill = chest_phantom(seed=3, finding=finding).astype(float)
    assert part(ill, place).mean() > part(healthy, place).mean() + 300
    assert abs(part(ill, other).mean() - part(healthy, other).mean()) < 30


def test_the_margin_bears_the_label(healthy):
    margin = healthy[-48:]
    assert margin.max() > 3500
    assert margin.min() == 0
    assert 0.02 < (margin > 2000).mean() < 0.3, "letters, not a bar"


def test_is_seen_as_a_positive_of_a_frontal_chest(healthy):
    ds = radiograph_from_image(healthy, photometric="MONOCHROME1")
    check_header(ds)
    np.testing.assert_allclose(prepare_dataset(ds).pixels, healthy / 4095, atol=1e-3)
