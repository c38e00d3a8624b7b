"""Cutting out the lungs, and putting a map of them back where it came from."""

from __future__ import annotations

import numpy as np

from cxr_node.analyse.enhance import classifier_input, cut_out_lungs, lung_box


def test_what_is_not_lung_is_blank():
    image = np.full((224, 224), 200, np.uint8)
    mask = np.zeros((224, 224), bool)
    mask[60:160, 40:180] = True
    crop = cut_out_lungs(image, mask, 160)
    assert (crop.image[~crop.mask] == 0).all()
    assert (crop.image[crop.mask] > 0).all()


def test_a_map_of_the_crop_returns_to_its_place():
    mask = np.zeros((224, 224), bool)
    mask[60:160, 40:180] = True
    crop = cut_out_lungs(np.zeros((224, 224), np.uint8), mask, 160)
    top, bottom, left, right = crop.box
    values = np.zeros((160, 160), np.float32)
    row, column = 100, 60  # a spot in the prepared image
    values[int((row - top) * 160 / (bottom - top)), int((column - left) * 160 / (right - left))] = 1
    placed = crop.to_prepared(values, (224, 224))
    found = np.unravel_index(placed.argmax(), placed.shape)
    assert abs(found[0] - row) <= 1
    assert abs(found[1] - column) <= 1


def test_the_box_of_nothing_is_the_whole_image():
    assert lung_box(np.zeros((100, 80), bool)) == (0, 100, 0, 80)


def test_a_classifier_of_whole_images_gets_all_of_the_image_and_learns_where_the_lungs_are():
    image = np.random.default_rng(1).integers(0, 255, (224, 224)).astype(np.uint8)
    mask = np.zeros((224, 224), bool)
    mask[:, :112] = True
    whole = classifier_input(image, mask, 112, segmented=False)
    assert np.array_equal(whole.image, cut_out_lungs(image, np.ones_like(mask), 112).image)  # as training has it
    assert whole.shown.all()
    assert whole.mask[:, :56].all()
    assert not whole.mask[:, 56:].any()
    assert np.array_equal(classifier_input(image, mask, 112, segmented=True).image, cut_out_lungs(image, mask, 112).image)
