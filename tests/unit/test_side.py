"""The judge of sides: that its answer changes its sign with the mirror, what is believed of it, and real radiographs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cxr_node.analyse.side import as_sides, classify_sides
from cxr_node.nets.constants import SIDE_SIZE_PX
from cxr_node.nets.side import SideNet, shipped_side_classifier
from cxr_node.prepare.source import read_dicom
from cxr_node.records import Marker, SidesBy


@pytest.mark.parametrize(
    ("log_odds", "said", "by", "mirrored"),
    [
        (5.0, True, SidesBy.HEADER, False),
        (0.5, True, SidesBy.HEADER, False),
        (-0.5, True, SidesBy.HEADER, False),
        (-5.0, True, SidesBy.CONTRADICTED, False),
        (5.0, False, SidesBy.PICTURE, False),
        (-5.0, False, SidesBy.PICTURE, True),
        (0.5, False, SidesBy.UNKNOWN, False),
        (-0.5, False, SidesBy.UNKNOWN, False),
    ],
)
def test_the_header_is_believed_unless_the_picture_surely_contradicts_it(log_odds, said, by, mirrored):
    sides = as_sides(log_odds, said, threshold=3)
    assert (sides.by, sides.mirrored, sides.known) == (by, mirrored, by in (SidesBy.HEADER, SidesBy.PICTURE))


R_LEFT, R_RIGHT = Marker("R", at_left=True), Marker("R", at_left=False)
L_LEFT, L_RIGHT = Marker("L", at_left=True), Marker("L", at_left=False)
FACE_DOWN, OF_MIRRORED = Marker("R", at_left=True, mirrored=True), Marker("R", at_left=False, mirrored=True)


@pytest.mark.parametrize(
    ("log_odds", "said", "marker", "by", "mirrored", "against"),
    [
        # all agree: as without a marker
        (5.0, True, R_LEFT, SidesBy.HEADER, False, ""),
        (0.5, True, L_RIGHT, SidesBy.HEADER, False, ""),
        (0.5, True, FACE_DOWN, SidesBy.HEADER, False, ""),
        (5.0, False, L_RIGHT, SidesBy.PICTURE, False, ""),
        (-5.0, False, R_RIGHT, SidesBy.PICTURE, True, ""),
        (-5.0, False, OF_MIRRORED, SidesBy.PICTURE, True, ""),
        # the marker alone says it
        (0.5, False, R_LEFT, SidesBy.MARKER, False, ""),
        (0.5, False, L_LEFT, SidesBy.MARKER, True, ""),
        (-0.5, False, R_RIGHT, SidesBy.MARKER, True, ""),
        # a mirrored letter is not believed alone
        (0.5, False, FACE_DOWN, SidesBy.UNKNOWN, False, ""),
        (0.5, False, OF_MIRRORED, SidesBy.UNKNOWN, False, ""),
        # it contradicts
        (0.5, True, R_RIGHT, SidesBy.CONTRADICTED, False, "header"),
        (0.5, True, L_LEFT, SidesBy.CONTRADICTED, False, "header"),
        (0.5, True, OF_MIRRORED, SidesBy.CONTRADICTED, False, "header"),
        (5.0, True, R_RIGHT, SidesBy.CONTRADICTED, False, "header and picture"),
        (-5.0, True, R_RIGHT, SidesBy.CONTRADICTED, False, "header"),
        (5.0, False, R_RIGHT, SidesBy.CONTRADICTED, False, "picture"),
        (-5.0, False, R_LEFT, SidesBy.CONTRADICTED, False, "picture"),
        (-5.0, False, FACE_DOWN, SidesBy.CONTRADICTED, False, "picture"),
        # it agrees with the header, the picture alone contradicts: dextrocardia, perhaps
        (-5.0, True, R_LEFT, SidesBy.CONTRADICTED, False, ""),
    ],
)
def test_the_films_marker_is_a_third_judge(log_odds, said, marker, by, mirrored, against):
    sides = as_sides(log_odds, said, 3, marker)
    assert (sides.by, sides.mirrored, sides.marker_against, sides.marker) == (by, mirrored, against, marker)
    assert sides.known == (by in (SidesBy.HEADER, SidesBy.PICTURE, SidesBy.MARKER))


@pytest.mark.parametrize("log_odds", [-5.0, -0.5, 0.5, 5.0])
@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("marker", [R_LEFT, R_RIGHT, L_LEFT, L_RIGHT, FACE_DOWN, OF_MIRRORED])
def test_no_result_names_sides_that_the_films_marker_contradicts(log_odds, said, marker):
    sides = as_sides(log_odds, said, 3, marker)
    if sides.known:
        assert marker.right_at_left != sides.mirrored


def test_mirroring_an_image_changes_the_sign_and_nothing_else():
    network = SideNet().eval()
    image = torch.rand(3, 1, SIDE_SIZE_PX, SIDE_SIZE_PX)
    with torch.inference_mode():
        assert torch.allclose(network(image), -network(image.flip(3)), atol=1e-5)


def shipped_side_log_odds(images):
    with torch.inference_mode():
        return shipped_side_classifier().network(torch.from_numpy(images).float().div(255).unsqueeze(1)).numpy()


def test_an_image_like_its_mirror_image_gets_no_answer():
    half = np.random.default_rng(1).integers(0, 256, (224, 112)).astype(np.uint8)
    (sides,) = classify_sides([np.hstack((half, half[:, ::-1]))], [False], shipped_side_log_odds)
    assert sides.by == SidesBy.UNKNOWN
    assert abs(sides.log_odds) < 1e-3


def test_no_images_no_answers():
    assert classify_sides([], [], shipped_side_log_odds) == []


def test_what_an_image_gets_does_not_depend_on_the_others_of_its_batch():
    images = [np.zeros((224, 224), np.uint8)] * 3
    sides = classify_sides(images, [True] * 3, lambda batch: np.full(len(batch), len(batch), np.float32))
    assert [one.log_odds for one in sides] == [1.0] * 3


def test_the_shipped_judge_is_small_and_says_how_right_it_is():
    judge = shipped_side_classifier()
    figures = judge.description["figures"]["test"]
    assert figures["all"]["accuracy"] >= 0.99
    assert figures["all"]["coverage"] >= 0.8
    assert sum(parameter.numel() for parameter in judge.network.parameters()) < 100_000


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "mirrored"),
    [("konica_cr_mirrored_orientation_empty.dcm", True), ("cr_jpeg_lossless_orientation_empty.dcm", False)],
)
def test_a_real_radiograph_without_an_orientation_is_judged_right(name, mirrored, data_folder):
    path = data_folder / "dicom" / "chest_more" / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    radiograph = read_dicom(path).radiograph
    assert not radiograph.geometry.sides_said
    (sides,) = classify_sides([radiograph.network_image], [False], shipped_side_log_odds)
    assert (sides.by, sides.mirrored) == (SidesBy.PICTURE, mirrored)
