"""The judge of sides: that its answer changes its sign with the mirror, what is believed of it, and real radiographs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cxr_node.analyse.side import as_sides, judge_sides
from cxr_node.nets.side import SIZE_PX, SideNet, shipped_side_judge
from cxr_node.records import SidesBy
from cxr_node.source import read_dicom


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


def test_mirroring_an_image_changes_the_sign_and_nothing_else():
    network = SideNet().eval()
    image = torch.rand(3, 1, SIZE_PX, SIZE_PX)
    with torch.inference_mode():
        assert torch.allclose(network(image), -network(image.flip(3)), atol=1e-5)


def test_an_image_like_its_mirror_image_gets_no_answer():
    half = np.random.default_rng(1).integers(0, 256, (224, 112)).astype(np.uint8)
    (sides,) = judge_sides([np.hstack((half, half[:, ::-1]))], [False])
    assert sides.by == SidesBy.UNKNOWN
    assert abs(sides.log_odds) < 1e-3


def test_no_images_no_answers():
    assert judge_sides([], []) == []


def test_the_shipped_judge_is_small_and_says_how_right_it_is():
    judge = shipped_side_judge()
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
    (sides,) = judge_sides([radiograph.network_image], [False])
    assert (sides.by, sides.mirrored) == (SidesBy.PICTURE, mirrored)
