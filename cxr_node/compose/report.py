"""The structured report: Comprehensive 3D SR after TID 1500, with a measurement group for the finding, for each lung and for
each region of heat, every one with a region on the source.

Its codes are data (codes.toml). Patient, study and equipment are `identity`'s to fill in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    Comprehensive3DSR,
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
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from cxr_node.compose.codes import code, private_scheme
from cxr_node.compose.identity import Place, bare_reference, device_uid, program_version, serial_number
from cxr_node.compose.sides import lung_name, note, site
from cxr_node.compose.source_pixels import SourceMaps
from cxr_node.prepare.geometry import outlines_in_source, to_source
from cxr_node.records import LABELS, MODEL_NAME, SIDES, ZONES, Findings, Geometry, Model

_HOT, _LEAST_HEAT, _MOST_HEAT_REGIONS = 0.5, 0.0004, 3
"""Heat regions begin at this value and cover at least such a share of the image; there are no more than so many."""

FINDING = "AI chest radiograph finding: region looked at"


def compose_report(
    source: Dataset,
    maps: SourceMaps,
    place: Place,
    *,
    overlay: Dataset | None = None,
    lungs: Dataset | None = None,
    predecessor: Dataset | None = None,
) -> Dataset:
    """The report as a data set, not yet identified.

    Args:
        source: the image's header.
        maps: the findings, and where they lie in the source.
        place: the report's own UIDs and numbers.
        overlay: the composed overlay, to be referenced; None if none was made.
        lungs: the composed segmentation of the lungs, likewise.
        predecessor: the report that this one replaces, or its UIDs alone.
    """
    image = bare_reference(source)
    groups = [_finding(image, maps, place, overlay, lungs)]
    groups += [group for side in SIDES if (group := _lung(image, maps, place, side)) is not None]
    groups += _heat_regions(image, maps, place)
    return document(maps.findings.model, [image, overlay, lungs], groups, place, predecessor)


def document(
    model: Model,
    evidence: Sequence[Dataset | None],
    groups: Sequence[PlanarROIMeasurementsAndQualitativeEvaluations],
    place: Place,
    predecessor: Dataset | None,
) -> Dataset:
    """A report around measurement groups (TID 1500), not yet identified.

    Args:
        model: what made the groups' content.
        evidence: what they refer to.
        groups: at least one.
        place: the report's own UIDs and numbers.
        predecessor: the report that this one replaces.
    """
    report = MeasurementReport(
        observation_context=ObservationContext(_observer(model)),
        procedure_reported=code("procedure", "imaging"),
        imaging_measurements=groups,
        language_of_content_item_and_descendants=LanguageOfContentItemAndDescendants(code("language", "english")),
    )
    return Comprehensive3DSR(
        evidence=[ds for ds in evidence if ds is not None],
        content=report,
        series_instance_uid=place.series_instance_uid,
        series_number=place.series_number,
        sop_instance_uid=place.sop_instance_uid,
        instance_number=place.instance_number,
        is_complete=True,
        is_final=False,  # a reader's report is the final one
        is_verified=False,
        performed_procedure_codes=[code("procedure", "imaging")],
        previous_versions=None if predecessor is None else [predecessor],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        coding_schemes=[private_scheme()],
    )


def lung_rectangle(lungs: NDArray[np.bool_], geometry: Geometry) -> NDArray[np.float64]:
    """The rectangle around the lungs in the source's pixel matrix, as a closed polyline.

    Args:
        lungs: bool (H, W), upright.
        geometry: of the source.

    Returns:
        float64 (5, 2): column, row, from (0, 0) at the outer corner of the first pixel (PS3.3 C.18.6.1.1); around the
        whole image if the mask is empty.
    """
    placed = to_source(lungs.astype(np.float32), geometry, shape=lungs.shape) >= 0.5
    rows, columns = np.flatnonzero(placed.any(axis=1)), np.flatnonzero(placed.any(axis=0))
    top, bottom, left, right = 0.0, 1.0, 0.0, 1.0
    if rows.size:
        height, width = placed.shape
        top, bottom = float(rows[0] / height), float((rows[-1] + 1) / height)
        left, right = float(columns[0] / width), float((columns[-1] + 1) / width)
    corners = ((left, top), (right, top), (right, bottom), (left, bottom), (left, top))
    return np.array([(x * geometry.columns, y * geometry.rows) for x, y in corners], np.float64)


def _finding(
    image: Dataset, maps: SourceMaps, place: Place, overlay: Dataset | None, lungs: Dataset | None
) -> PlanarROIMeasurementsAndQualitativeEvaluations:
    """TID 1410: what was found, by what, with all its numbers: those that viewers write beside the region come first."""
    findings = maps.findings
    measurements = [_percent(code("probability", label), findings.probabilities[label]) for label in LABELS]
    measurements.append(_percent(code("measurement", "threshold"), max(findings.indeterminate_below, 1 / len(LABELS))))
    measurements.append(_percent(code("measurement", "heat_in_lungs"), findings.heat_in_lungs))
    measurements.append(_percent(code("measurement", "lung_area"), findings.lung_area_fraction))
    for side in SIDES:
        measurements += _of_lung(maps, side, lungs)
    group = PlanarROIMeasurementsAndQualitativeEvaluations(
        TrackingIdentifier(uid=place.tracking_uid(FINDING), identifier=FINDING),
        referenced_region=region(image, lung_rectangle(findings.lungs, maps.geometry)),
        finding_type=code("finding", findings.answer),
        algorithm_id=_algorithm(findings),
        finding_sites=[FindingSite(code("site", "lung"))],
        measurements=measurements,
    )
    if overlay is not None:
        group[0].ContentSequence.append(
            ImageContentItem(
                code("image", "overlay"),
                overlay.SOPClassUID,
                overlay.SOPInstanceUID,
                relationship_type=RelationshipTypeValues.CONTAINS,
            )
        )
    return group


def _of_lung(maps: SourceMaps, side: str, lungs: Dataset | None) -> list[Measurement]:
    """One lung's area and its and its zones' shares of the heat; none where it wasn't found.

    They refer to the segmentation, if one was made, as what they were taken from (TID 320).
    """
    if not maps.lung(side).any():
        return []
    findings = maps.findings
    segment = None if lungs is None else (lungs, SIDES.index(side) + 1)
    lung = site("lung", side, findings.sides, maps.geometry)
    measurements = [
        _percent(code("measurement", "heat_by_lung"), findings.heat_by_lung[side], lung, segment),
        _percent(code("measurement", "lung_area"), float(maps.lung(side).mean()), lung, segment),
    ]
    for zone in ZONES:
        zone_site = site(f"{zone}_zone", side, findings.sides, maps.geometry)
        share = findings.heat_by_zone[side, zone]
        measurements.append(_percent(code("measurement", "heat_by_zone"), share, zone_site, segment))
    return measurements


def _lung(image: Dataset, maps: SourceMaps, place: Place, side: str) -> PlanarROIMeasurementsAndQualitativeEvaluations | None:
    """TID 1410: the outline of one lung, an anatomical region with its side; None where it wasn't found.

    It bears the tracking UID of the lung's segment. Its side is in the concept, without numbers and sites: viewers write those at
    the outline's right edge, where the finding's numbers stand.
    """
    outlines = outlines_in_source(maps.lung(side), maps.geometry)
    if not outlines:
        return None
    model = maps.findings.model
    name = lung_name(side, maps.findings.sides, maps.geometry)
    return PlanarROIMeasurementsAndQualitativeEvaluations(
        TrackingIdentifier(uid=place.tracking_uid(name), identifier=name),
        referenced_region=region(image, outlines[0]),
        finding_type=code("site", f"{side}_lung" if maps.findings.sides.known else "lung"),
        algorithm_id=AlgorithmIdentification(model.name, model.version),
    )


def _heat_regions(image: Dataset, maps: SourceMaps, place: Place) -> list[PlanarROIMeasurementsAndQualitativeEvaluations]:
    """TID 1410: where heat of half the scale and more lies, the largest regions first; without sites, as for a lung."""
    findings = maps.findings
    least = _LEAST_HEAT * maps.geometry.rows * maps.geometry.columns
    outlines = outlines_in_source(findings.heatmap >= _HOT, maps.geometry)
    large = sorted((outline for outline in outlines if _area(outline) >= least), key=_area, reverse=True)
    groups = []
    for number, outline in enumerate(large[:_MOST_HEAT_REGIONS], start=1):
        name = f"Heat region {number}"
        groups.append(
            PlanarROIMeasurementsAndQualitativeEvaluations(
                TrackingIdentifier(uid=place.tracking_uid(name), identifier=name),
                referenced_region=region(image, outline),
                finding_type=code("segment", "saliency"),
                algorithm_id=AlgorithmIdentification(findings.model.name, findings.model.version),
            )
        )
    return groups


def _area(outline: NDArray[np.float64]) -> float:
    """Of a closed polyline, float64 (N, 2)."""
    x, y = outline[:, 0], outline[:, 1]
    return float(abs((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) / 2)


def region(image: Dataset, outline: NDArray[np.float64]) -> ImageRegion:
    """A closed polyline, float64 (N, 2): column and row, on the source."""
    return ImageRegion(GraphicTypeValues.POLYLINE, outline, SourceImageForRegion(image.SOPClassUID, image.SOPInstanceUID))


def _observer(model: Model) -> ObserverContext:
    """TID 1002 and 1004: this program with these weights."""
    return ObserverContext(
        codes.DCM.Device,
        DeviceObserverIdentifyingAttributes(
            uid=device_uid(model),
            name=f"{MODEL_NAME} {program_version()}",
            manufacturer_name=MODEL_NAME,
            model_name=MODEL_NAME,
            serial_number=serial_number(model),
        ),
    )


def _algorithm(findings: Findings) -> AlgorithmIdentification:
    """TID 4019: the network, what of it changes the numbers, and how region and sides are to be read.

    Parameters are where the templates have a place for words: PixelMed warns of any other.
    """
    model = findings.model
    parameters = [
        "probabilities: calibrated, of classes that exclude each other",
        "region: what was looked at, and not the place of a lesion",
        "decision rule: class of the highest probability",
    ]
    if findings.indeterminate_below:
        parameters[-1] += f", indeterminate below {findings.indeterminate_below:.0%}"
    if said := note(findings.sides):
        parameters.append(f"sides: {said}")
    if findings.sides.mirrored:
        parameters.append("sides: mirrored before the analysis, as judged from the picture")
    if findings.indeterminate:
        parameters.append(f"indeterminate because: {findings.indeterminate_reason}")
    if findings.greys_inverted:
        parameters.append("greys: inverted before the analysis")
    if model.digest:
        parameters.append(f"weights: sha256 {model.digest}")
    return AlgorithmIdentification(model.name, model.version, parameters=parameters)


def _percent(
    name: CodedConcept, fraction: float, site: FindingSite | None = None, segment: tuple[Dataset, int] | None = None
) -> Measurement:
    """A fraction 0..1 as a NUM in percent, to two decimals.

    Args:
        name: what it is.
        fraction: 0..1.
        site: of what.
        segment: the segmentation and the number of the segment that it was measured in.
    """
    images = None
    if segment is not None:
        ds, number = segment
        images = [SourceImageForMeasurement(ds.SOPClassUID, ds.SOPInstanceUID)]
        images[0].ReferencedSOPSequence[0].ReferencedSegmentNumber = number
    return Measurement(
        name,
        round(100 * float(fraction), 2),
        code("unit", "percent"),
        finding_sites=None if site is None else [site],
        referenced_images=images,
    )
