"""Right and left in every result: header and picture agree, are silent, are unsure, or contradict each other."""

from __future__ import annotations

import warnings
from io import BytesIO

import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from cxr_node.compose import compose_results
from cxr_node.compose.overlay import draw_overlay
from cxr_node.compose.sides import marker_text, note
from cxr_node.node.work import as_json
from cxr_node.records import Geometry, Marker, Radiograph, ResultKind, Sides, SidesBy
from tests.compose_inputs import NOW, SMALL, findings, radiograph, source

HEADER, PICTURE = Sides(SidesBy.HEADER, 5), Sides(SidesBy.PICTURE, 5)
MIRRORED = Sides(SidesBy.PICTURE, -5, mirrored=True)
UNKNOWN, CONTRADICTED = Sides(SidesBy.UNKNOWN, 0.1), Sides(SidesBy.CONTRADICTED, -5)
BY_MARKER = Sides(SidesBy.MARKER, 0.1, marker=Marker("R", at_left=True))
BY_MARKER_MIRRORED = Sides(SidesBy.MARKER, 0.1, mirrored=True, marker=Marker("R", at_left=False))
AGREEING = Sides(SidesBy.PICTURE, 5, marker=Marker("L", at_left=False))
CONTRARY = Sides(SidesBy.CONTRADICTED, 5, marker=Marker("R", at_left=False), marker_against="header and picture")
UNSAID = pytest.mark.parametrize("sides", [UNKNOWN, CONTRADICTED, CONTRARY], ids=["unknown", "contradicted", "contrary marker"])
LATERALITY = {"24028007", "7771000", "3341006", "44029006"}
"""Right, left, right lung, left lung."""


def composed(sides: Sides, way: dict[str, bool] | None = None, **attributes: object) -> dict[ResultKind, Dataset]:
    made = compose_results(
        *(source(**attributes), radiograph(**(way or {})), findings(sides=sides)), kinds=tuple(ResultKind), overlay=SMALL, now=NOW
    )
    return {item.kind: pydicom.dcmread(BytesIO(item.content)) for item in made}


def codes(ds: Dataset) -> set[str]:
    return {str(element.value) for element in ds.iterall() if element.keyword == "CodeValue"}


def texts(ds: Dataset) -> str:
    wanted = ("TextValue", "CodeMeaning", "SegmentLabel", "TrackingID", "UnformattedTextValue", "SegmentDescription")
    return " | ".join(str(element.value) for element in ds.iterall() if element.keyword in wanted)


def corner_letters(sides: Sides, geometry: Geometry) -> bool:
    """Whether anything is drawn in the corners of the strip above the overlay."""
    shown = Radiograph(np.zeros((300, 260), np.float32), np.zeros((224, 224), np.uint8), geometry)
    strip = draw_overlay(shown, findings(sides=sides), 1024)[:30]
    width = strip.shape[1]
    return bool(strip[:, : width // 10].max() > 100 or strip[:, -width // 10 :].max() > 100)


def test_sides_that_header_and_picture_agree_on_are_said_as_they_are():
    made = composed(HEADER)
    assert made[ResultKind.LUNGS].PatientOrientation == ["L", "F"]
    assert [segment.SegmentLabel for segment in made[ResultKind.LUNGS].SegmentSequence] == ["Right lung", "Left lung"]
    assert codes(made[ResultKind.REPORT]) >= LATERALITY
    assert note(HEADER) == ""
    assert corner_letters(HEADER, Geometry(300, 260))


@pytest.mark.parametrize("written", [["l", "f"], ["LEFT", "FOOT"]])
def test_results_state_the_orientation_in_the_standard_s_letters(written):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of lower case
        made = composed(HEADER, PatientOrientation=written)
    assert made[ResultKind.LUNGS].PatientOrientation == ["L", "F"]
    assert made[ResultKind.OVERLAY].PatientOrientation == ["L", "F"]


@pytest.mark.parametrize(("sides", "row"), [(PICTURE, "L"), (MIRRORED, "R")], ids=["upright", "mirrored"])
def test_sides_judged_from_the_picture_are_said_and_marked_as_judged(sides, row):
    made = composed(sides, PatientOrientation="")
    for kind in (ResultKind.OVERLAY, ResultKind.LUNGS, ResultKind.HEATMAP):
        assert made[kind].PatientOrientation == [row, "F"]
    assert codes(made[ResultKind.REPORT]) >= LATERALITY
    for kind in (ResultKind.REPORT, ResultKind.PRESENTATION):
        assert "judged from the picture" in texts(made[kind])
    assert corner_letters(sides, Geometry(300, 260))


@pytest.mark.parametrize(("sides", "row"), [(BY_MARKER, "L"), (BY_MARKER_MIRRORED, "R")], ids=["upright", "mirrored"])
def test_sides_judged_from_the_films_marker_are_said_and_marked_as_judged(sides, row):
    made = composed(sides, PatientOrientation="")
    for kind in (ResultKind.OVERLAY, ResultKind.LUNGS, ResultKind.HEATMAP):
        assert made[kind].PatientOrientation == [row, "F"]
    assert codes(made[ResultKind.REPORT]) >= LATERALITY
    for kind in (ResultKind.REPORT, ResultKind.PRESENTATION):
        assert "judged from the film's marker" in texts(made[kind])
    assert corner_letters(sides, Geometry(300, 260))


def test_a_marker_that_agrees_is_named_where_the_picture_was_judged():
    assert "the picture and the film's marker" in note(AGREEING)
    assert note(Sides(SidesBy.HEADER, 5, marker=Marker("R", at_left=True))) == ""


@pytest.mark.parametrize(
    ("marker", "way", "said"),
    [
        (Marker("R", at_left=True), {}, "R on the picture's left"),
        (Marker("L", at_left=False, mirrored=True), {}, "mirrored L on the picture's right"),
        (Marker("R", at_left=True), {"flipped_horizontally": True}, "mirrored R on the picture's right"),
        (Marker("R", at_left=True), {"transposed": True}, "mirrored R on the picture's top"),
    ],
)
def test_results_say_what_letter_was_read_and_where_it_stands_in_the_source(marker, way, said):
    sides = Sides(SidesBy.HEADER, 5, marker=marker)
    assert as_json(findings(sides=sides), {}, Geometry(300, 260, **way))["sides"]["marker"] == said
    assert as_json(findings(sides=HEADER), {}, Geometry(300, 260, **way))["sides"]["marker"] == ""


def test_a_mirrored_picture_has_its_right_lung_on_the_right():
    columns = radiograph().pixels.shape[1]
    right, left = composed(MIRRORED, PatientOrientation="")[ResultKind.LUNGS].pixel_array > 0
    assert np.nonzero(right)[1].min() > columns / 2 > np.nonzero(left)[1].max()


@UNSAID
def test_sides_that_are_not_known_are_not_said(sides):
    made = composed(sides)
    for kind in (ResultKind.OVERLAY, ResultKind.LUNGS, ResultKind.HEATMAP, ResultKind.HEATVALUES):
        assert not made[kind].PatientOrientation
    for kind in (ResultKind.REPORT, ResultKind.LUNGS, ResultKind.HEATMAP, ResultKind.PRESENTATION):
        assert not codes(made[kind]) & LATERALITY
        assert "Right lung" not in texts(made[kind])
        assert "Left lung" not in texts(made[kind])
    assert not corner_letters(sides, Geometry(300, 260))


@UNSAID
@pytest.mark.parametrize(
    ("way", "names"),
    [
        ({}, ("left", "right")),
        ({"across": True}, ("right", "left")),
        ({"down": True}, ("left", "right")),
        ({"transposed": True}, ("top", "bottom")),
        ({"transposed": True, "across": True}, ("bottom", "top")),
    ],
    ids=str,
)
def test_segments_are_then_named_by_the_side_of_the_picture_they_lie_on(sides, way, names):
    seg = composed(sides, way)[ResultKind.LUNGS]
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == [f"Lung on the picture's {name}" for name in names]
    rows, columns = np.nonzero(seg.pixel_array[0])
    where = {"left": columns.max() < seg.Columns / 2, "right": columns.min() > seg.Columns / 2}
    where |= {"top": rows.max() < seg.Rows / 2, "bottom": rows.min() > seg.Rows / 2}
    assert where[names[0]]


@pytest.mark.parametrize("sides", [CONTRADICTED, CONTRARY], ids=["picture", "marker"])
def test_a_contradiction_is_a_warning_everywhere(sides):
    made = composed(sides)
    for kind in (ResultKind.REPORT, ResultKind.PRESENTATION):
        assert "WARNING" in texts(made[kind])
    json = as_json(findings(sides=sides), {}, radiograph().geometry)
    assert json["sides"]["by"] == "contradicted"
    assert len(json["warnings"]) == 1
    assert "right" not in json["heat_by_lung"]
    assert set(json["heat_by_lung"]) == {"picture left", "picture right"}


def test_a_warning_says_what_the_marker_contradicts():
    assert "the film's marker disagrees with the header and picture" in note(CONTRARY)
    assert "header and picture disagree" in note(CONTRADICTED)


def test_the_overlay_says_how_sides_are_known_in_a_line_of_its_own():
    shown = radiograph()
    heights = [draw_overlay(shown, findings(sides=sides), 1024).shape[0] for sides in (HEADER, PICTURE, CONTRADICTED)]
    amber = [
        (np.abs(draw_overlay(shown, findings(sides=sides), 1024)[-30:].astype(int) - (255, 190, 70)).sum(axis=2) < 30).sum()
        for sides in (HEADER, PICTURE, CONTRADICTED)
    ]
    assert heights[0] <= 1024
    assert amber[0] == 0
    assert min(amber[1:]) > 50


def test_the_answer_is_one_field():
    for below, answer in ((0.0, "bacterial_pneumonia"), (0.95, "indeterminate")):
        found = findings(indeterminate_below=below)
        json = as_json(found, {}, radiograph().geometry)
        assert (json["answer"], json["likeliest"]) == (found.answer, found.likeliest) == (answer, "bacterial_pneumonia")


@pytest.mark.parametrize(
    ("way", "mirrored", "words"),
    [
        ({}, False, "L on the picture's right"),
        ({}, True, "mirrored L on the picture's right"),
        ({"flipped_horizontally": True}, False, "mirrored L on the picture's left"),
        ({"flipped_horizontally": True}, True, "L on the picture's left"),
        ({"flipped_horizontally": True, "flipped_vertically": True}, False, "L on the picture's left"),
        ({"transposed": True}, True, "L on the picture's bottom"),
        ({"transposed": True, "flipped_vertically": True}, True, "mirrored L on the picture's bottom"),
    ],
)
def test_a_marker_is_described_as_the_picture_shows_it(way, mirrored, words):
    """It is read in the upright image; who looks for it sees the source, in which it may be turned over."""
    sides = Sides(marker=Marker("L", at_left=False, mirrored=mirrored))
    assert marker_text(sides, Geometry(300, 400, **way)) == words
