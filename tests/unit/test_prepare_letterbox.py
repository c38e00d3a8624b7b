"""Captures between bars: what is cut, what isn't, and that results lie where the picture is."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_node.prepare.geometry import mask_to_source, outlines_in_source, points_to_source, to_source
from cxr_node.prepare.letterbox import picture_box
from cxr_node.prepare.network_image import to_network_image
from cxr_node.prepare.radiograph import prepare_pixels
from cxr_node.records import Geometry


def picture(rows: int = 400, columns: int = 360) -> np.ndarray:
    """uint8, of many greys in every row and column."""
    return (np.add.outer(np.arange(rows) * 3, np.arange(columns) * 5) % 251).astype(np.uint8)


@pytest.mark.parametrize("grey", [0, 255, 90])
@pytest.mark.parametrize(
    ("bars", "box"),
    [
        ((0, 0, 120, 120), (0, 400, 120, 480)),
        ((0, 0, 118, 124), (0, 400, 118, 478)),
        ((90, 90, 0, 0), (90, 490, 0, 360)),
        ((100, 100, 80, 80), (100, 500, 80, 440)),
        ((0, 0, 200, 10), (0, 400, 200, 560)),
        ((0, 0, 0, 200), (0, 400, 0, 360)),
        ((0, 0, 200, 0), (0, 400, 200, 560)),
        ((0, 300, 0, 0), (0, 400, 0, 360)),
        ((300, 0, 0, 0), (300, 700, 0, 360)),
    ],
)
def test_a_picture_between_bars_is_cut_out(bars, box, grey):
    top, bottom, left, right = bars
    boxed = np.pad(picture(), ((top, bottom), (left, right)), constant_values=grey)
    radiograph = prepare_pixels(boxed)
    assert radiograph.geometry.box == box
    plain = to_network_image(picture().astype(np.float32) / 255)
    assert np.abs(radiograph.network_image.astype(int) - plain).max() <= 2


@pytest.mark.parametrize("bars", [(0, 0, 0, 0), (0, 0, 20, 20), (0, 0, 0, 40), (60, 30, 0, 0)])
def test_narrow_bars_are_left_as_a_collimator_s_shadow(bars):
    top, bottom, left, right = bars
    boxed = np.pad(picture(), ((top, bottom), (left, right))).astype(np.float32) / 255
    assert picture_box(boxed) is None


def test_what_would_be_too_slender_or_too_small_is_left():
    assert picture_box(np.pad(picture(400, 150), ((0, 0), (200, 200))).astype(np.float32) / 255) is None
    assert picture_box(np.pad(picture(120, 120), 200).astype(np.float32) / 255) is None


@pytest.mark.parametrize("flags", [(False, False, False), (False, False, True), (False, True, False), (True, False, True)])
def test_maps_lie_on_the_picture_and_nowhere_else(flags):
    geometry = Geometry(600, 800, *flags, box=(100, 500, 200, 600))
    everything = np.ones((224, 224), np.float32)
    heat = to_source(everything, geometry)
    assert (heat[100:500, 200:600] == 1).all()
    assert heat.sum() == 400 * 400
    mask = mask_to_source(everything > 0, geometry)
    assert mask.sum() == pytest.approx(400 * 400, rel=0.02)
    (outline,) = outlines_in_source(everything > 0, geometry)
    assert np.allclose(outline.min(axis=0), (200, 100), atol=2)
    assert np.allclose(outline.max(axis=0), (600, 500), atol=2)
    corners = points_to_source(np.array([(0.0, 0.0), (1.0, 1.0)]), geometry)
    assert sorted(corners.ravel().tolist()) == [100, 200, 500, 600]
