"""The report's tree is what highdicom's templates (TID 1500) make of the same content, element by element."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    GraphicTypeValues,
    ImageContentItem,
    ImageRegion,
    LanguageOfContentItemAndDescendants,
    Measurement,
    MeasurementReport,
    ObservationContext,
    ObserverContext,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    RelationshipTypeValues,
    SourceImageForMeasurement,
    SourceImageForRegion,
    TrackingIdentifier,
)
from pydicom import Dataset
from pydicom.sr.codedict import codes

from cxr_node.compose.codes import code, finding_concept, probability_concept
from cxr_node.compose.identity import ResultIdentity, bare_reference, device_uid, program_version, serial_number
from cxr_node.compose.report import FINDING, _parameters, compose_report
from cxr_node.compose.report_regions import lung_rectangle
from cxr_node.compose.sides import lung_name, side_name
from cxr_node.compose.source_pixels import SourceMaps
from cxr_node.prepare.geometry import outlines_in_source
from cxr_node.records import LABELS, MODEL_NAME, SIDES, ZONES, FindingClass, Geometry, Model, Sides, SidesBy
from tests.compose_inputs import MARK, SIDE, ellipse, findings, heat_at, source

PLACE = ResultIdentity("1.2.3.1", "1.2.3.2", 3, 1, "1.2.3.4")


def reference(uid, sop_class_uid):
    ds = bare_reference(source())
    ds.SOPInstanceUID, ds.SOPClassUID, ds.SeriesInstanceUID = uid, sop_class_uid, f"{uid}.9"
    return ds


OVERLAY = reference("1.2.3.7", "1.2.840.10008.5.1.4.1.1.7")
LUNGS = reference("1.2.3.8", "1.2.840.10008.5.1.4.1.1.66.4")


def by_highdicom(image, maps, overlay, lungs):
    """The whole tree, made by highdicom's templates."""
    model = maps.findings.model
    device = DeviceObserverIdentifyingAttributes(
        uid=device_uid(model),
        name=f"{MODEL_NAME} {program_version()}",
        manufacturer_name=MODEL_NAME,
        model_name=MODEL_NAME,
        serial_number=serial_number(model),
    )
    report = MeasurementReport(
        observation_context=ObservationContext(ObserverContext(codes.DCM.Device, device)),
        procedure_reported=code("procedure", "imaging"),
        imaging_measurements=[finding(image, maps, overlay, lungs), *lung_groups(image, maps), *heat_groups(image, maps)],
        language_of_content_item_and_descendants=LanguageOfContentItemAndDescendants(code("language", "english")),
    )
    return report[0]


def group(name, finding_type, model, image, outline, **more):
    more.setdefault("algorithm_id", AlgorithmIdentification(model.name, model.version))
    return PlanarROIMeasurementsAndQualitativeEvaluations(
        TrackingIdentifier(uid=PLACE.tracking_uid(name), identifier=name),
        referenced_region=ImageRegion(
            GraphicTypeValues.POLYLINE, outline, SourceImageForRegion(image.SOPClassUID, image.SOPInstanceUID)
        ),
        finding_type=finding_type,
        **more,
    )


def finding(image, maps, overlay, lungs):
    said, model = maps.findings, maps.findings.model
    measurements = [
        percent(CodedConcept(*probability_concept(label, model)), value) for label, value in said.probabilities.items()
    ]
    threshold = max(said.indeterminate_below, 1 / len(said.probabilities))
    measurements.append(percent(code("measurement", "threshold"), threshold))
    measurements.append(percent(code("measurement", "heat_in_lungs"), said.heat_in_lungs))
    measurements.append(percent(code("measurement", "lung_area"), said.lung_area_fraction))
    for number, side in enumerate(SIDES, start=1):
        if maps.lung(side).any():
            measurements += of_lung(maps, side, None if lungs is None else (lungs, number))
    made = group(
        *(FINDING, CodedConcept(*finding_concept(said.answer, model)), model, image),
        lung_rectangle(said.lungs, maps.geometry),
        algorithm_id=AlgorithmIdentification(model.name, model.version, parameters=_parameters(said)),
        finding_sites=[FindingSite(code("site", "lung"))],
        measurements=measurements,
    )
    if overlay is not None:
        illustration = code("image", "overlay"), overlay.SOPClassUID, overlay.SOPInstanceUID
        made[0].ContentSequence.append(ImageContentItem(*illustration, relationship_type=RelationshipTypeValues.CONTAINS))
    return made


def of_lung(maps, side, segment):
    said = maps.findings

    def site(place):
        name = side_name(side, said.sides, maps.geometry)
        if said.sides.known:
            return FindingSite(code("site", place), laterality=code("site", name))
        return FindingSite(code("site", place), topographical_modifier=code("site", name.replace(" ", "_")))

    yield percent(code("measurement", "heat_by_lung"), said.heat_by_lung[side], site("lung"), segment)
    yield percent(code("measurement", "lung_area"), float(maps.lung(side).mean()), site("lung"), segment)
    for zone in ZONES:
        share = said.heat_by_zone[side, zone]
        yield percent(code("measurement", "heat_by_zone"), share, site(f"{zone}_zone"), segment)


def percent(name, fraction, site=None, segment=None):
    images = None
    if segment is not None:
        images = [SourceImageForMeasurement(segment[0].SOPClassUID, segment[0].SOPInstanceUID)]
        images[0].ReferencedSOPSequence[0].ReferencedSegmentNumber = segment[1]
    return Measurement(
        name,
        round(100 * fraction, 2) or float(f"{100 * fraction:.1g}"),
        code("unit", "percent"),
        finding_sites=None if site is None else [site],
        referenced_images=images,
    )


def lung_groups(image, maps):
    sides = maps.findings.sides
    for side in SIDES:
        for outline in outlines_in_source(maps.lung(side), maps.geometry)[:1]:
            name = lung_name(side, sides, maps.geometry)
            yield group(name, code("site", f"{side}_lung" if sides.known else "lung"), maps.findings.model, image, outline)


def heat_groups(image, maps):
    outlines = outlines_in_source(maps.findings.heatmap >= 0.5, maps.geometry)
    for number, outline in enumerate(outlines, start=1):
        yield group(f"Heat region {number}", code("segment", "saliency"), maps.findings.model, image, outline)


OWN = FindingClass("tuberculosis", "Tuberculosis", "99999999999999999", "SCT", "Tuberculosis")
WITH_OWN = Model("CXRNet", "2", classes=(*LABELS, OWN.name), own_classes=(OWN,))
NO_LUNG = np.zeros((SIDE, SIDE), bool)
CASES = {
    **{label: {"label": label} for label in LABELS},
    "indeterminate": {"indeterminate_below": 0.95},
    "in doubt": {"doubt": "the picture is blurred", "greys_inverted": True},
    "a class of the weights' own": {
        "label": OWN.name,
        "model": WITH_OWN,
        "probabilities": dict(zip(WITH_OWN.classes, (0.00004, 0.1, 0.1, 0, 0.79996), strict=True)),
    },
    **{f"sides: {by}, mirrored: {mirrored}": {"sides": Sides(by, 1.0, mirrored)} for by in SidesBy for mirrored in (False, True)},
    "no heat": {
        "heatmap": np.zeros((SIDE, SIDE), np.float32),
        "heat_in_lungs": 0.0,
        "heat_by_lung": dict.fromkeys(SIDES, 0.0),
        "heat_by_zone": dict.fromkeys(itertools.product(SIDES, ZONES), 0.0),
    },
    "two regions": {"heatmap": np.maximum(heat_at(MARK), heat_at((90, 154), 7))},
    "one lung": {"lungs": ellipse((120, 70), (82, 40))},
    "no lungs": {"lungs": NO_LUNG, "right_lung": NO_LUNG, "heatmap": np.zeros((SIDE, SIDE), np.float32)},
}


@pytest.mark.parametrize("geometry", [Geometry(640, 512), Geometry(512, 640, True, flipped_vertically=True)], ids=["up", "aside"])
@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_the_tree_is_that_of_highdicom_s_templates(changes, geometry):
    maps = SourceMaps(findings(**changes), geometry)
    for overlay, lungs in ((OVERLAY, LUNGS), (None, None)):
        ds = compose_report(source(), maps, PLACE, overlay=overlay, lungs=lungs)
        expected = by_highdicom(bare_reference(source()), maps, overlay, lungs)
        given = Dataset({element.tag: element for element in ds if element.tag in expected})
        assert given.to_json_dict() == expected.to_json_dict()


def test_what_reports_share_is_the_same_after_another_report():
    maps = SourceMaps(findings(), Geometry(640, 512))
    first = compose_report(source(), maps, PLACE, overlay=OVERLAY, lungs=LUNGS).to_json_dict()
    other = findings(sides=Sides(SidesBy.UNKNOWN), label="healthy")
    compose_report(source(PatientName="Other^One"), SourceMaps(other, Geometry(300, 200)), PLACE)
    again = compose_report(source(), maps, PLACE, overlay=OVERLAY, lungs=LUNGS).to_json_dict()
    assert again["0040A730"] == first["0040A730"]
