"""Every way an image can lie: upright, mirrored, turned; and back onto the source."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest

from cxr_node.prepare.geometry import geometry_of, orientation, orientation_values, to_source, to_upright
from cxr_node.prepare.network_image import to_network_image
from cxr_node.prepare.radiograph import prepare_dataset, prepare_pixels
from cxr_node.records import Geometry
from tests.images import grey_image, ramp

# An upright image with marks that tell its corners: patient's right and head at the top left.
UPRIGHT = np.array([[1, 2, 3], [4, 5, 6]], np.float32)

# PatientOrientation says where the right end of a row and the bottom of a column point to in the patient.
SOURCES = {
    "L\\F": UPRIGHT,
    "R\\F": np.array([[3, 2, 1], [6, 5, 4]]),  # mirrored
    "L\\H": np.array([[4, 5, 6], [1, 2, 3]]),  # mirrored, top to bottom
    "R\\H": np.array([[6, 5, 4], [3, 2, 1]]),  # turned half round
    "F\\L": np.array([[1, 4], [2, 5], [3, 6]]),
    "H\\L": np.array([[4, 1], [5, 2], [6, 3]]),  # turned a quarter to the right
    "F\\R": np.array([[3, 6], [2, 5], [1, 4]]),  # turned a quarter to the left
    "H\\R": np.array([[6, 3], [5, 2], [4, 1]]),
}
FLIPS = [Geometry(0, 0, *flags) for flags in itertools.product([False, True], repeat=3)]


@pytest.mark.parametrize(("value", "source"), SOURCES.items(), ids=SOURCES)
def test_every_orientation_is_turned_upright(value, source):
    ds = grey_image(source.astype(np.uint8), PatientOrientation=value.split("\\"))
    upright = to_upright(source, geometry_of(ds, *source.shape))
    assert np.array_equal(upright, UPRIGHT)
    assert upright.flags.c_contiguous


def test_the_eight_orientations_are_eight_geometries():
    found = {geometry_of(grey_image(ramp(), PatientOrientation=value.split("\\")), 1, 1) for value in SOURCES}
    assert len(found) == 8


@pytest.mark.parametrize(
    "value", [None, "", "L", ["L"], ["A", "F"], ["P", "H"], ["L", "R"], ["F", "H"], ["X", "F"], ["", ""], ["L", "F", "H"]]
)
def test_an_orientation_of_no_frontal_view_is_taken_as_it_lies(value):
    ds = grey_image(ramp())
    if value is not None:
        ds.PatientOrientation = value
    assert geometry_of(ds, 160, 200) == Geometry(160, 200, sides_said=False)


def test_an_oblique_orientation_counts_by_its_leading_letter():
    assert orientation(grey_image(ramp(), PatientOrientation=["RA", "FL"])) == ("R", "F")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (["l", "f"], ("L", "F")),
        (["LEFT", "FOOT"], ("L", "F")),
        (["Right", "Head"], ("R", "H")),
        (["RAH", "FPL"], ("RAH", "FPL")),
        (["LINKS", "FUSS"], None),
        (["GAUCHE", "PIED"], None),
        (["FRONT", "LATERAL"], None),
        (["LR", "F"], None),
        (["LL", "FF"], None),
        (["LE", "CD"], None),
    ],
    ids=str,
)
def test_an_orientation_is_said_in_the_standard_s_letters_or_not_at_all(value, said):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of lower case
        ds = grey_image(ramp(), PatientOrientation=value)
    assert orientation_values(ds) == said
    assert geometry_of(ds, 160, 200).sides_said == (said is not None)


def test_what_was_done_relative_to_the_detector_is_not_undone():
    ds = grey_image(ramp(), PatientOrientation=["L", "F"], FieldOfViewHorizontalFlip="YES", FieldOfViewRotation="90")
    assert geometry_of(ds, 160, 200) == Geometry(160, 200)


@pytest.mark.parametrize("flags", [(g.transposed, g.flipped_vertically, g.flipped_horizontally) for g in FLIPS])
@pytest.mark.parametrize(("rows", "columns"), [(300, 300), (500, 260), (230, 700)])
@pytest.mark.parametrize("place", [(0.2, 0.3), (0.7, 0.15), (0.85, 0.9)])
def test_a_mark_in_the_source_is_found_there_again(place, rows, columns, flags):
    """Painted in the source, seen in the network image, mapped back: the same place, whatever the aspect."""
    geometry = Geometry(rows, columns, *flags)
    source = np.zeros((rows, columns), np.float32)
    row, column = int(place[0] * rows), int(place[1] * columns)
    source[row - 10 : row + 11, column - 10 : column + 11] = 1

    seen = to_network_image(to_upright(source, geometry)).astype(np.float32)
    back = to_source(seen, geometry)

    assert back.shape == source.shape
    assert back.dtype == np.float32
    weights = back / back.sum()
    centre = (weights.sum(axis=1) @ np.arange(rows), weights.sum(axis=0) @ np.arange(columns))
    assert centre == pytest.approx((row, column), abs=1.5)


@pytest.mark.parametrize("flags", [(g.transposed, g.flipped_vertically, g.flipped_horizontally) for g in FLIPS])
def test_the_way_back_undoes_the_way_up(flags):
    source = np.random.default_rng(0).random((40, 70), np.float32)
    geometry = Geometry(40, 70, *flags)
    assert np.array_equal(to_source(to_upright(source, geometry), geometry), source)


def test_a_smaller_result_shows_the_same():
    geometry = Geometry(1000, 600, True, False, True)
    smooth = np.outer(np.linspace(0, 1, 224), np.linspace(1, 0.2, 224)).astype(np.float32)
    whole, small = to_source(smooth, geometry), to_source(smooth, geometry, shape=(100, 60))
    assert small.shape == (100, 60)
    np.testing.assert_allclose(small, whole.reshape(100, 10, 60, 10).mean(axis=(1, 3)), atol=0.01)


def test_the_result_is_no_view_of_its_source():
    heat = np.zeros((50, 50), np.float32)
    to_source(heat, Geometry(50, 50))[:] = 1
    assert heat.max() == 0


def test_colour_arrays_are_turned_too():
    rgb = np.stack([UPRIGHT] * 3, -1)
    assert to_upright(rgb, Geometry(2, 3, True)).shape == (3, 2, 3)


@pytest.mark.parametrize("value", SOURCES)
def test_the_network_sees_every_orientation_alike(value):
    upright = np.add.outer(np.arange(240) * 3, np.arange(300) * 2).astype(np.uint16)
    upright[30:90, 40:80] = 4000  # in the patient's right upper lung
    geometry = geometry_of(grey_image(ramp(), PatientOrientation=value.split("\\")), 1, 1)
    source = upright[:, ::-1] if geometry.flipped_horizontally else upright
    source = source[::-1] if geometry.flipped_vertically else source
    source = np.ascontiguousarray(source.T if geometry.transposed else source)

    radiograph = prepare_dataset(
        grey_image(source, 12, PatientOrientation=value.split("\\"), WindowCenter="2048", WindowWidth="4096")
    )

    expected = prepare_dataset(grey_image(upright, 12, WindowCenter="2048", WindowWidth="4096"))
    assert np.abs(radiograph.network_image.astype(int) - expected.network_image).max() <= 1
    assert radiograph.pixels.shape == source.shape


def test_pixels_of_a_picture_use_the_bits_that_their_values_need():
    twelve = (ramp(dtype=np.uint16) * 16).astype(np.uint16)
    assert prepare_pixels(twelve).pixels.max() == pytest.approx(4000 / 4095)
    assert prepare_pixels(ramp()).pixels.max() == pytest.approx(250 / 255)
