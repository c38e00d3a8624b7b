"""The structured report: Comprehensive 3D SR after TID 1500, with one measurement group that has a region on the source.

Its codes are data (codes.toml). Patient, study and equipment are `identity`'s to fill in.
"""

from __future__ import annotations

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
    SourceImageForRegion,
    TrackingIdentifier,
)
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from cxr_node.compose.codes import code, private_scheme
from cxr_node.compose.identity import Place, bare_reference, derived_uid, device_uid, program_version, serial_number
from cxr_node.prepare.geometry import to_source
from cxr_node.records import LABELS, MODEL_NAME, Findings, Geometry

TRACKING_IDENTIFIER = "AI chest radiograph finding"


def compose_report(source: Dataset, geometry: Geometry, findings: Findings, place: Place, overlay: Dataset | None) -> Dataset:
    """The report as a data set, not yet identified.

    Args:
        source: the image's header.
        geometry: how the findings' arrays lie in the source.
        findings: what to report.
        place: the report's own UIDs and numbers.
        overlay: the composed overlay, to be referenced; None if none was made.
    """
    image = bare_reference(source)
    evidence = [image] if overlay is None else [image, overlay]
    report = MeasurementReport(
        observation_context=ObservationContext(_observer(findings)),
        procedure_reported=code("procedure", "imaging"),
        imaging_measurements=[_group(image, geometry, findings, place, overlay)],
        language_of_content_item_and_descendants=LanguageOfContentItemAndDescendants(code("language", "english")),
    )
    return Comprehensive3DSR(
        evidence=evidence,
        content=report,
        series_instance_uid=place.series_instance_uid,
        series_number=place.series_number,
        sop_instance_uid=place.sop_instance_uid,
        instance_number=place.instance_number,
        is_complete=True,
        is_final=False,  # a reader's report is the final one
        is_verified=False,
        performed_procedure_codes=[code("procedure", "imaging")],
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


def _group(
    image: Dataset, geometry: Geometry, findings: Findings, place: Place, overlay: Dataset | None
) -> PlanarROIMeasurementsAndQualitativeEvaluations:
    """TID 1410: what was found, where, by what, with which numbers."""
    lung = code("site", "lung")
    sides = [FindingSite(lung, laterality=code("site", side)) for side in ("right", "left")]
    measurements = [_percent(code("probability", label), findings.probabilities[label]) for label in LABELS]
    measurements.append(_percent(code("measurement", "threshold"), 1 / len(LABELS)))
    measurements.append(_percent(code("measurement", "heat_in_lungs"), findings.heat_in_lungs))
    for side, site in zip(("right", "left"), sides, strict=True):
        measurements.append(_percent(code("measurement", "heat_by_lung"), findings.heat_by_lung[side], site))
    measurements.append(_percent(code("measurement", "lung_area"), findings.lung_area_fraction))
    region = ImageRegion(
        GraphicTypeValues.POLYLINE,
        lung_rectangle(findings.lungs, geometry),
        SourceImageForRegion(image.SOPClassUID, image.SOPInstanceUID),
    )
    group = PlanarROIMeasurementsAndQualitativeEvaluations(
        TrackingIdentifier(uid=derived_uid("tracking", place.sop_instance_uid), identifier=TRACKING_IDENTIFIER),
        referenced_region=region,
        finding_type=code("finding", findings.label),
        algorithm_id=_algorithm(findings),
        finding_sites=[FindingSite(lung)],
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


def _observer(findings: Findings) -> ObserverContext:
    """TID 1002 and 1004: this program with these weights."""
    model = findings.model
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
    """TID 4019: the network, and what of it changes the numbers."""
    model = findings.model
    parameters = ["decision rule: class of the highest probability"]
    if model.digest:
        parameters.append(f"weights: sha256 {model.digest}")
    return AlgorithmIdentification(model.name, model.version, parameters=parameters)


def _percent(name: CodedConcept, fraction: float, site: FindingSite | None = None) -> Measurement:
    """A fraction 0..1 as a NUM in percent, to two decimals."""
    sites = None if site is None else [site]
    return Measurement(name, round(100 * float(fraction), 2), code("unit", "percent"), finding_sites=sites)
