"""Cleaning the lungs, telling right from left, and turning away what can't be lungs."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_node.analyse.segment import check_lungs, clean_mask, right_and_left, zone_rows
from cxr_node.errors import Rejected


def two_lungs() -> np.ndarray:
    mask = np.zeros((224, 224), bool)
    mask[50:180, 30:90] = True
    mask[50:180, 130:190] = True
    return mask


def test_specks_go_and_holes_are_filled():
    mask = two_lungs()
    mask[100:104, 50:54] = False
    mask[5:9, 5:9] = True
    cleaned = clean_mask(mask)
    assert cleaned[100:104, 50:54].all()
    assert not cleaned[:20, :20].any()


def test_an_empty_mask_stays_empty():
    assert not clean_mask(np.zeros((224, 224), bool)).any()


def test_the_patient_s_right_lung_is_on_the_image_s_left():
    right, left = right_and_left(two_lungs())
    assert right[:, :110].sum() == right.sum() > 0
    assert left[:, 110:].sum() == left.sum() > 0


def test_lungs_that_touch_are_cut_where_they_are_thinnest():
    mask = two_lungs()
    mask[170:175, 90:130] = True
    right, left = right_and_left(mask)
    assert right[100, 60]
    assert left[100, 160]
    assert not (right & left).any()
    assert ((right | left) == mask).all()


def test_two_lungs_are_believed():
    check_lungs(two_lungs())


@pytest.mark.parametrize(
    ("rows", "columns"),
    [(slice(0, 0), slice(0, 0)), (slice(100, 120), slice(100, 120))],
    ids=["none", "tiny"],
)
def test_no_lungs_are_turned_away(rows, columns):
    mask = np.zeros((224, 224), bool)
    mask[rows, columns] = True
    with pytest.raises(Rejected, match="No lungs"):
        check_lungs(mask)


def test_zones_are_thirds_of_a_lung_s_height():
    right, left = right_and_left(two_lungs())
    assert zone_rows(right) == zone_rows(left) == (93, 137)  # rows 50 to 180
    assert zone_rows(np.zeros((224, 224), bool)) == (0, 0)
