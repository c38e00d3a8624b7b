"""The structured report: what it says, where it points, and that its codes are declared.

Over 300 lines: one report, looked at from all sides.
"""

from __future__ import annotations

import itertools
import tomllib
from importlib.resources import files
from io import BytesIO

import numpy as np
import pydicom
import pytest
from highdicom.sr import Comprehensive3DSR
from pydicom.uid import UID

from cxr_node.compose import compose_results
from cxr_node.compose.report_regions import lung_rectangle
from cxr_node.records import LABELS, Geometry, ResultKind
from tests.compose_inputs import MARK, MODEL, NOW, PROBABILITIES, SIDE, SMALL, findings, heat_at, radiograph, source

CODES = tomllib.loads((files("cxr_node.compose") / "codes.toml").read_text("utf-8"))
BOTH = (ResultKind.OVERLAY, ResultKind.REPORT)
WITH_LUNGS = (ResultKind.LUNGS, ResultKind.REPORT)


def composed(way=None, kinds=BOTH, predecessor=None, **changes):
    made = compose_results(
        *(source(), radiograph(**(way or {})), findings(**changes)),
        **{"now": NOW, "kinds": kinds, "overlay": SMALL, "predecessor": predecessor},
    )
    return {item.kind: pydicom.dcmread(BytesIO(item.content)) for item in made}


def report(**options):
    return Comprehensive3DSR.from_dataset(composed(**options)[ResultKind.REPORT])


def group(**options):
    """The group of the finding."""
    return groups(**options)[0]


def groups(**options):
    return report(**options).content.get_planar_roi_measurement_groups()


def items(ds):
    """Every content item below an object or an item."""
    for item in ds.get("ContentSequence", []):
        yield item
        yield from items(item)


def concepts(ds):
    for element in ds.iterall():
        if element.keyword in ("ConceptNameCodeSequence", "ConceptCodeSequence", "MeasurementUnitsCodeSequence"):
            yield from element.value


def measured(name):
    """Values of a measurement by the name of its code, with the site that it names if it does."""
    code = CODES[name[0]][name[1]]["value"]
    found = []
    for item in items(composed()[ResultKind.REPORT]):
        if item.ValueType == "NUM" and item.ConceptNameCodeSequence[0].CodeValue == code:
            value = item.MeasuredValueSequence[0]
            unit = value.MeasurementUnitsCodeSequence[0]
            assert (unit.CodeValue, unit.CodingSchemeDesignator) == ("%", "UCUM")
            found.append((float(value.NumericValue), next((i for i in items(item) if i.ValueType == "CODE"), None)))
    return found


def test_is_an_imaging_measurement_report_after_tid_1500():
    ds = composed()[ResultKind.REPORT]
    assert ds.SOPClassUID == pydicom.uid.Comprehensive3DSRStorage
    assert ds.ConceptNameCodeSequence[0].CodeValue == "126000"
    assert ds.ContentTemplateSequence[0].TemplateIdentifier == "1500"


def test_is_complete_unverified_and_has_the_procedure_sequences():
    ds = composed()[ResultKind.REPORT]
    assert (ds.CompletionFlag, ds.VerificationFlag, ds.PreliminaryFlag) == ("COMPLETE", "UNVERIFIED", "PRELIMINARY")
    assert len(ds.ReferencedPerformedProcedureStepSequence) == 0
    assert ds.PerformedProcedureCodeSequence[0].CodeValue == "363679005"


@pytest.mark.parametrize(
    ("concept", "value", "scheme"),
    [("121058", "363679005", "SCT"), ("121049", "en-US", "RFC5646"), ("121005", "121007", "DCM")],
    ids=["procedure reported", "language", "observer type"],
)
def test_says_at_its_root_what_was_done_in_which_language_and_by_what(concept, value, scheme):
    root = composed()[ResultKind.REPORT].ContentSequence
    (code,) = (i.ConceptCodeSequence[0] for i in root if i.ConceptNameCodeSequence[0].CodeValue == concept)
    assert (code.CodeValue, code.CodingSchemeDesignator) == (value, scheme)


@pytest.mark.parametrize(("probability", "written"), [(0.5, 50), (0.123456, 12.35), (1.2e-5, 0.001), (4e-9, 4e-7), (0.0, 0)])
def test_a_small_probability_is_no_0(probability, written):
    """OHIF writes "%" without a number beside a 0."""
    given = findings().probabilities | {"viral_pneumonia": probability}
    values = {
        item.ConceptNameCodeSequence[0].CodeValue: float(item.MeasuredValueSequence[0].NumericValue)
        for item in items(composed(probabilities=given)[ResultKind.REPORT])
        if item.ValueType == "NUM"
    }
    assert values["P-VIRAL"] == written


def test_the_finding_is_in_the_lungs():
    (site,) = group().finding_sites
    assert (site.value.value, site.value.scheme_designator) == ("39607008", "SCT")


def test_says_that_the_probabilities_are_calibrated_and_how_the_class_is_chosen():
    parameters = [item.TextValue for item in items(composed(indeterminate_below=0.6)[ResultKind.REPORT]) if is_parameter(item)]
    assert "probabilities: calibrated, of classes that exclude each other" in parameters
    assert "decision rule: class of the highest probability, indeterminate below 60% of the likeliest class" in parameters


@pytest.mark.parametrize("reason", ["unlike the training images", "other abnormality suspected"])
def test_says_why_a_result_is_indeterminate(reason):
    parameters = [item.TextValue for item in items(composed(doubt=reason)[ResultKind.REPORT]) if is_parameter(item)]
    assert f"indeterminate because: {reason}" in parameters
    parameters = [item.TextValue for item in items(composed()[ResultKind.REPORT]) if is_parameter(item)]
    assert not any(text.startswith("indeterminate because") for text in parameters)


def is_parameter(item):
    return item.ValueType == "TEXT" and item.ConceptNameCodeSequence[0].CodeValue == "111002"


def test_the_observer_is_this_device():
    (context,) = report().content.get_observer_contexts()
    device = context.observer_identifying_attributes
    assert UID(device.uid).is_valid
    assert (device.manufacturer_name, device.model_name) == ("cxr_node", "cxr_node")
    assert device.serial_number == MODEL.digest[:16]
    assert device.name.startswith("cxr_node ")


@pytest.mark.parametrize(
    ("label", "code"),
    [
        ("bacterial_pneumonia", "53084003"),
        ("viral_pneumonia", "75570004"),
        ("covid19_pneumonia", "882784691000119100"),
    ],
)
def test_the_finding_is_the_class_in_snomed_ct(label, code):
    finding = group(label=label).finding_type
    assert (finding.value, finding.scheme_designator) == (code, "SCT")


def test_no_pneumonia_is_not_called_a_normal_chest():
    finding = group(label="healthy").finding_type
    assert (finding.value, finding.scheme_designator) == ("NO-PNEUMONIA", "99CXRNODE")
    assert "absent" in finding.meaning
    assert not any(concept.get("CodeValue") == "17621005" for concept in concepts(composed(label="healthy")[ResultKind.REPORT]))


def test_the_finding_s_region_is_marked_as_what_was_looked_at():
    assert "region looked at" in group().tracking_identifier
    parameters = [item.TextValue for item in items(composed()[ResultKind.REPORT]) if is_parameter(item)]
    assert "region: what was looked at, and not the place of a lesion" in parameters


def test_each_region_of_heat_is_a_group_of_its_own():
    spots = np.maximum(heat_at(MARK), 0.8 * heat_at((90, 150), spread=8))
    hot = groups(heatmap=spots)[3:]
    assert [one.tracking_identifier for one in hot] == ["Heat region 1", "Heat region 2"]
    assert [one.finding_type.value for one in hot] == ["130404", "130404"]
    scale = radiograph().pixels.shape[1] / SIDE
    assert np.allclose(hot[0].roi.value[:, 0].mean() / scale, MARK[1], atol=3)
    assert np.allclose(hot[1].roi.value[:, 0].mean() / scale, 150, atol=3)


def test_without_heat_there_is_no_region_of_it():
    assert len(groups(heatmap=np.zeros((SIDE, SIDE), np.float32))) == 3


def test_a_code_of_more_than_16_characters_is_a_long_code_value():
    ds = composed(label="covid19_pneumonia")[ResultKind.REPORT]
    assert any(item.get("LongCodeValue") == "882784691000119100" and "CodeValue" not in item for item in concepts(ds))


@pytest.mark.parametrize("label", LABELS)
def test_each_probability_is_a_measurement_in_percent(label):
    ((value, _),) = measured(("probability", label))
    assert value == pytest.approx(100 * PROBABILITIES[label], abs=0.005)


@pytest.mark.parametrize(("name", "expected"), [("threshold", 25), ("heat_in_lungs", 83)])
def test_other_measurements(name, expected):
    ((value, _),) = measured(("measurement", name))
    assert value == pytest.approx(expected, abs=0.005)


def test_the_area_of_both_lungs_is_the_sum_of_each_one_s():
    both, right, left = (value for value, _ in measured(("measurement", "lung_area")))
    assert both == pytest.approx(100 * findings().lung_area_fraction, abs=0.005)
    assert right + left == pytest.approx(both, abs=0.02)


@pytest.mark.parametrize(
    ("below", "finding", "threshold"), [(0.0, "53084003", 25.0), (0.5, "53084003", 50.0), (0.9, "280416009", 90.0)]
)
def test_a_class_that_is_too_improbable_is_reported_as_indeterminate(below, finding, threshold):
    ds = composed(indeterminate_below=below)[ResultKind.REPORT]
    values = {
        item.ConceptNameCodeSequence[0].CodeValue: item.MeasuredValueSequence[0].NumericValue
        for item in items(ds)
        if item.ValueType == "NUM"
    }
    assert values["THRESHOLD"] == threshold
    assert values["P-BACTERIAL"] == pytest.approx(87.34)
    assert group(indeterminate_below=below).finding_type.value == finding


def test_the_share_of_heat_is_given_for_each_lung():
    shares = {}
    for value, site in measured(("measurement", "heat_by_lung")):
        assert site.ConceptCodeSequence[0].CodeMeaning == "Lung"
        shares[next(items(site)).ConceptCodeSequence[0].CodeMeaning] = value
    assert shares == {"Right": 90, "Left": 10}


def test_only_the_finding_has_numbers_and_a_site_since_viewers_would_write_others_over_them():
    finding, *others = groups()
    assert len(finding.get_measurements()) == 17
    for other in others:
        assert other.get_measurements() == []
        assert other.finding_sites == []


def test_the_share_of_heat_is_given_for_six_zones():
    shares = {}
    for value, site in measured(("measurement", "heat_by_zone")):
        shares[next(items(site)).ConceptCodeSequence[0].CodeMeaning, site.ConceptCodeSequence[0].CodeMeaning] = value
    zones = [f"{zone} zone of lung" for zone in ("Upper", "Middle", "Lower")]
    assert shares == dict(zip(itertools.product(("Right", "Left"), zones), (10, 50, 30, 4, 5, 1), strict=True))


def test_each_lung_is_a_group_with_its_outline():
    _, right, left, _ = groups()
    assert (right.tracking_identifier, left.tracking_identifier) == ("Right lung", "Left lung")
    assert [lung.finding_type.value for lung in (right, left)] == ["3341006", "44029006"]
    for side in (right, left):
        outline = side.roi.value
        assert len(outline) > 20
        assert (outline[0] == outline[-1]).all()
    middle = radiograph().pixels.shape[1] / 2
    assert right.roi.value[:, 0].max() < middle < left.roi.value[:, 0].min()


def test_a_lung_that_was_not_found_has_no_group():
    without_left = findings().right_lung
    assert len(groups(lungs=without_left, right_lung=without_left)) == 3  # the finding, the right lung, the heat in it


def test_what_was_measured_in_a_lung_refers_to_its_segment():
    made = composed(kinds=WITH_LUNGS)
    segmentation = made[ResultKind.LUNGS]
    segments = {}
    for item in items(made[ResultKind.REPORT]):
        if item.get("RelationshipType") == "INFERRED FROM" and item.ValueType == "IMAGE":
            (reference,) = item.ReferencedSOPSequence
            assert reference.ReferencedSOPInstanceUID == segmentation.SOPInstanceUID
            segments[reference.ReferencedSegmentNumber] = segments.get(reference.ReferencedSegmentNumber, 0) + 1
    assert segments == {1: 5, 2: 5}
    assert (segmentation.StudyInstanceUID, segmentation.SeriesInstanceUID, segmentation.SOPInstanceUID) in [
        row[:3] for row in Comprehensive3DSR.from_dataset(made[ResultKind.REPORT]).get_evidence()
    ]


def test_a_lung_is_tracked_as_the_same_thing_by_report_and_segmentation():
    made = composed(kinds=WITH_LUNGS)
    tracked = [segment.TrackingUID for segment in made[ResultKind.LUNGS].SegmentSequence]
    assert tracked == [lung.tracking_uid for lung in groups(kinds=WITH_LUNGS)[1:3]]


def test_names_the_report_that_it_replaces():
    earlier = composed()[ResultKind.REPORT]
    ds = composed(predecessor=earlier)[ResultKind.REPORT]
    (study,) = ds.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    (reference,) = series.ReferencedSOPSequence
    assert study.StudyInstanceUID == earlier.StudyInstanceUID
    assert series.SeriesInstanceUID == earlier.SeriesInstanceUID
    assert (reference.ReferencedSOPInstanceUID, reference.ReferencedSOPClassUID) == (earlier.SOPInstanceUID, earlier.SOPClassUID)


def test_a_first_report_replaces_none():
    assert "PredecessorDocumentsSequence" not in composed()[ResultKind.REPORT]


def test_every_group_names_the_algorithm():
    texts = [
        (item.ConceptNameCodeSequence[0].CodeValue, item.TextValue)
        for item in items(composed()[ResultKind.REPORT])
        if item.ValueType == "TEXT" and item.ConceptNameCodeSequence[0].CodeValue in ("111001", "111003", "111002")
    ]
    assert texts.count(("111001", MODEL.name)) == texts.count(("111003", MODEL.version)) == 4
    assert texts.count(("111002", f"weights: sha256 {MODEL.digest}")) == 1


def test_tracks_its_group_by_a_derived_uid():
    one, again, other = group(), group(), group(model=type(MODEL)("CXRNet", "9"))
    assert UID(one.tracking_uid).is_valid
    assert one.tracking_uid == again.tracking_uid != other.tracking_uid
    assert one.tracking_identifier


def test_every_group_has_a_region_on_the_source():
    """Viewers show nothing at all where a group has none."""
    ds = composed()[ResultKind.REPORT]
    containers = [item for item in items(ds) if item.ConceptNameCodeSequence[0].CodeValue == "125007"]
    assert len(containers) == 4
    for item in containers:
        (region,) = (child for child in items(item) if child.ValueType == "SCOORD")
        assert region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source().SOPInstanceUID


def test_refers_to_the_overlay_as_its_illustration():
    made = composed()
    overlay = made[ResultKind.OVERLAY]
    referenced = [
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in items(made[ResultKind.REPORT])
        if item.ConceptNameCodeSequence[0].CodeValue == "121080"
    ]
    assert referenced == [overlay.SOPInstanceUID]


def test_lists_all_it_refers_to_as_evidence():
    made = composed()
    overlay = made[ResultKind.OVERLAY]
    evidence = {tuple(map(str, row)) for row in Comprehensive3DSR.from_dataset(made[ResultKind.REPORT]).get_evidence()}
    given = source()
    assert evidence == {
        (given.StudyInstanceUID, given.SeriesInstanceUID, given.SOPInstanceUID, given.SOPClassUID),
        (overlay.StudyInstanceUID, overlay.SeriesInstanceUID, overlay.SOPInstanceUID, overlay.SOPClassUID),
    }


def test_without_an_overlay_none_is_referred_to():
    made = composed(kinds=(ResultKind.REPORT,))
    assert len(Comprehensive3DSR.from_dataset(made[ResultKind.REPORT]).get_evidence()) == 1
    assert not [i for i in items(made[ResultKind.REPORT]) if i.ConceptNameCodeSequence[0].CodeValue == "121080"]


def test_private_codes_are_declared():
    ds = composed()[ResultKind.REPORT]
    private = {item.CodingSchemeDesignator for item in concepts(ds) if item.CodingSchemeDesignator.startswith("99")}
    declared = {item.CodingSchemeDesignator for item in ds.CodingSchemeIdentificationSequence}
    assert private == declared == {"99CXRNODE"}


def test_the_code_table_covers_every_class():
    assert set(CODES["finding"]) - {"indeterminate", "not_analysed"} == set(CODES["probability"]) == set(LABELS)


@pytest.mark.parametrize("table", [name for name in CODES if name != "scheme"])
def test_codes_fit_their_value_representations(table):
    for code in CODES[table].values():
        assert set(code) == {"value", "scheme", "meaning"}
        assert 0 < len(code["meaning"]) <= 64
        assert len(code["scheme"]) <= 16
        assert not (code["scheme"].startswith("99") and len(code["value"]) > 16)


TOP, BOTTOM, LEFT, RIGHT = 20, 120, 30, 130
"""An upright box in 224 x 224, off centre both ways."""


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ((False, False, False), (30, 20, 130, 120)),
        ((False, False, True), (94, 20, 194, 120)),
        ((False, True, False), (30, 104, 130, 204)),
        ((True, False, False), (20, 30, 120, 130)),
        ((True, True, False), (104, 30, 204, 130)),
        ((True, False, True), (20, 94, 120, 194)),
        ((True, True, True), (104, 94, 204, 194)),
    ],
)
def test_the_region_lies_in_the_source_s_own_pixels(way, expected):
    mask = np.zeros((SIDE, SIDE), bool)
    mask[TOP:BOTTOM, LEFT:RIGHT] = True
    corners = lung_rectangle(mask, Geometry(2 * SIDE, 3 * SIDE, *way))
    left, top, right, bottom = expected
    assert np.allclose(corners.min(axis=0), [3 * left, 2 * top])
    assert np.allclose(corners.max(axis=0), [3 * right, 2 * bottom])
    assert (corners[0] == corners[-1]).all()


def test_without_lungs_the_region_is_the_whole_image():
    corners = lung_rectangle(np.zeros((SIDE, SIDE), bool), Geometry(500, 400))
    assert (corners.min(axis=0) == 0).all()
    assert (corners.max(axis=0) == [400, 500]).all()


def test_the_region_in_the_report_is_the_lungs_rectangle():
    way = {"across": True, "transposed": True}
    expected = lung_rectangle(findings().lungs, radiograph(**way).geometry)
    assert np.allclose(group(way=way).roi.value, expected, atol=1e-3)
