"""The structured report: Comprehensive 3D SR after TID 1500, with a measurement group for the finding, for each lung and for
each region of heat, every one with a region on the source.

Its codes are data (codes.toml). `identity` adds patient, study and equipment.
"""

from __future__ import annotations

from collections.abc import Sequence

from highdicom.sr import Comprehensive3DSR, ContainerContentItem, ContentSequence
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from cxr_node.compose import content_items as items
from cxr_node.compose.codes import Concept, code, concept, finding_concept, private_scheme, probability_concept
from cxr_node.compose.identity import ResultIdentity, bare_reference, device_uid, program_version, serial_number
from cxr_node.compose.notes import GREYS_INVERTED
from cxr_node.compose.report_regions import area_of, lung_rectangle, region
from cxr_node.compose.sides import lung_name, note, site
from cxr_node.compose.source_pixels import SourceMaps
from cxr_node.prepare.geometry import outlines_in_source
from cxr_node.records import MODEL_NAME, SIDES, ZONES, Findings, Model, SidesBy

_HOT, _LEAST_HEAT, _MOST_HEAT_REGIONS = 0.5, 0.0004, 3
"""Heat regions: least heat, least fraction of the image, largest number of regions."""

FINDING = "AI chest radiograph finding: region looked at"


def compose_report(
    source: Dataset,
    maps: SourceMaps,
    place: ResultIdentity,
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
    groups: Sequence[Dataset],
    place: ResultIdentity,
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
    # highdicom copies a tree, converts the copy and searches it for references: it gets the root alone.
    bare = ContainerContentItem(codes.DCM.ImagingMeasurementReport, template_id="1500")
    bare.ContentSequence = ContentSequence()
    ds = Comprehensive3DSR(
        evidence=[each for each in evidence if each is not None],
        content=bare,
        series_instance_uid=place.series_instance_uid,
        series_number=place.series_number,
        sop_instance_uid=place.sop_instance_uid,
        instance_number=place.instance_number,
        is_complete=True,
        is_final=False,  # the reader's report is the final one
        is_verified=False,
        performed_procedure_codes=[code("procedure", "imaging")],
        previous_versions=None if predecessor is None else [predecessor],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        coding_schemes=[private_scheme()],
    )
    ds.ContentSequence = [
        items.coded(items.MODIFIER, concept("item", "language"), concept("language", "english")),
        *_observer(model),
        items.coded(items.MODIFIER, concept("item", "procedure"), concept("procedure", "imaging")),
        items.container(concept("item", "measurements"), groups),
    ]
    return ds


def measurement_group(
    tracked: tuple[str, str],
    finding: Concept,
    model: Model,
    where: Dataset,
    *,
    sites: Sequence[Dataset] = (),
    parameters: Sequence[str] = (),
    measurements: Sequence[Dataset] = (),
    more: Sequence[Dataset] = (),
) -> Dataset:
    """TID 1410: one thing that is tracked, what it is, and where.

    Args:
        tracked: its name and its tracking UID.
        finding: what it is.
        model: what found it.
        where: its region.
        sites: where it lies in the body.
        parameters: of the algorithm, in words (TID 4019).
        measurements: its numbers.
        more: what stands behind the region.
    """
    name, uid = tracked
    return items.container(
        concept("item", "group"),
        [
            items.text(items.CONTEXT, concept("item", "tracking_identifier"), name),
            items.uid(items.CONTEXT, concept("item", "tracking_uid"), uid),
            items.coded(items.CONTAINS, concept("item", "finding"), finding),
            *sites,
            items.text(items.MODIFIER, concept("item", "algorithm_name"), model.name),
            items.text(items.MODIFIER, concept("item", "algorithm_version"), model.version),
            *(items.text(items.MODIFIER, concept("item", "algorithm_parameters"), words) for words in parameters),
            *measurements,
            where,
            *more,
        ],
        template="1410",
    )


def _finding(image: Dataset, maps: SourceMaps, place: ResultIdentity, overlay: Dataset | None, lungs: Dataset | None) -> Dataset:
    """TID 1410: what was found, by what, with all its numbers: those that viewers write beside the region come first."""
    findings = maps.findings
    measurements = [
        _percent(probability_concept(label, findings.model), value) for label, value in findings.probabilities.items()
    ]
    threshold = max(findings.indeterminate_below, 1 / len(findings.probabilities))
    measurements.append(_percent(concept("measurement", "threshold"), threshold))
    measurements.append(_percent(concept("measurement", "heat_in_lungs"), findings.heat_in_lungs))
    measurements.append(_percent(concept("measurement", "lung_area"), findings.lung_area_fraction))
    for side in SIDES:
        measurements += _of_lung(maps, side, lungs)
    return measurement_group(
        (FINDING, place.tracking_uid(FINDING)),
        finding_concept(findings.answer, findings.model),
        findings.model,
        region(image, lung_rectangle(findings.lungs, maps.geometry)),
        sites=[items.coded(items.MODIFIER, concept("item", "finding_site"), concept("site", "lung"))],
        parameters=_parameters(findings),
        measurements=measurements,
        more=[] if overlay is None else [items.image(items.CONTAINS, concept("image", "overlay"), overlay)],
    )


def _of_lung(maps: SourceMaps, side: str, lungs: Dataset | None) -> list[Dataset]:
    """One lung's area, and the share of the heat in the lung and in its zones; nothing if it wasn't found.

    They refer to the segmentation, if one was made, as their source (TID 320).
    """
    if not maps.lung(side).any():
        return []
    findings = maps.findings
    segment = []
    if lungs is not None:
        number = SIDES.index(side) + 1
        segment = [items.image(items.INFERRED, concept("item", "source_of_measurement"), lungs, number)]
    lung = site("lung", side, findings.sides, maps.geometry)
    measurements = [
        _percent(concept("measurement", "heat_by_lung"), findings.heat_by_lung[side], [lung, *segment]),
        _percent(concept("measurement", "lung_area"), float(maps.lung(side).mean()), [lung, *segment]),
    ]
    for zone in ZONES:
        zone_site = site(f"{zone}_zone", side, findings.sides, maps.geometry)
        share = findings.heat_by_zone[side, zone]
        measurements.append(_percent(concept("measurement", "heat_by_zone"), share, [zone_site, *segment]))
    return measurements


def _lung(image: Dataset, maps: SourceMaps, place: ResultIdentity, side: str) -> Dataset | None:
    """TID 1410: the outline of one lung, an anatomical region with its side; None where it wasn't found.

    It bears the tracking UID of the lung's segment. Its side is in the concept, without numbers and sites: viewers write those at
    the outline's right edge, where the finding's numbers stand.
    """
    outlines = outlines_in_source(maps.lung(side), maps.geometry)
    if not outlines:
        return None
    name = lung_name(side, maps.findings.sides, maps.geometry)
    return measurement_group(
        (name, place.tracking_uid(name)),
        concept("site", f"{side}_lung" if maps.findings.sides.known else "lung"),
        maps.findings.model,
        region(image, outlines[0]),
    )


def _heat_regions(image: Dataset, maps: SourceMaps, place: ResultIdentity) -> list[Dataset]:
    """TID 1410: where heat of half the scale and more lies, the largest regions first; without sites, as for a lung."""
    findings = maps.findings
    least = _LEAST_HEAT * maps.geometry.rows * maps.geometry.columns
    outlines = outlines_in_source(findings.heatmap >= _HOT, maps.geometry)
    large = sorted((outline for outline in outlines if area_of(outline) >= least), key=area_of, reverse=True)
    groups = []
    for number, outline in enumerate(large[:_MOST_HEAT_REGIONS], start=1):
        name = f"Heat region {number}"
        tracked = (name, place.tracking_uid(name))
        groups.append(measurement_group(tracked, concept("segment", "saliency"), findings.model, region(image, outline)))
    return groups


def _observer(model: Model) -> list[Dataset]:
    """TID 1002 and 1004: this program with these weights."""
    said = {
        "device_name": f"{MODEL_NAME} {program_version()}",
        "device_manufacturer": MODEL_NAME,
        "device_model": MODEL_NAME,
        "device_serial_number": serial_number(model),
    }
    return [
        items.coded(items.CONTEXT, concept("item", "observer_type"), concept("item", "device")),
        items.uid(items.CONTEXT, concept("item", "device_uid"), device_uid(model)),
        *(items.text(items.CONTEXT, concept("item", name), value) for name, value in said.items()),
    ]


def _parameters(findings: Findings) -> list[str]:
    """TID 4019: the parameters that affect the numbers, and how to read region and sides.

    Parameters are the only place for free text in the templates: PixelMed warns about any other.
    """
    model = findings.model
    parameters = [
        "probabilities: calibrated, of classes that exclude each other",
        "region: what was looked at, and not the place of a lesion",
        "decision rule: class of the highest probability",
    ]
    if findings.indeterminate_below:
        parameters[-1] += f", indeterminate below {findings.indeterminate_below:.0%} of the likeliest class"
    if said := note(findings.sides):
        parameters.append(f"sides: {said}")
    if findings.sides.mirrored:
        judge = "the film's marker" if findings.sides.by == SidesBy.MARKER else "the picture"
        parameters.append(f"sides: mirrored before the analysis, as judged from {judge}")
    if findings.indeterminate:
        parameters.append(f"indeterminate because: {findings.indeterminate_reason}")
    if findings.greys_inverted:
        parameters.append(f"greys: {GREYS_INVERTED}")
    if model.digest:
        parameters.append(f"weights: sha256 {model.digest}")
    return parameters


def _percent(name: Concept, fraction: float, children: Sequence[Dataset] = ()) -> Dataset:
    """A fraction 0..1 as a NUM in percent, to two decimals, or to the first digit that isn't 0: OHIF writes no number for a 0.

    Args:
        name: what it is.
        fraction: 0..1.
        children: of what, and the segment that it was measured in (TID 320).
    """
    percent = round(100 * float(fraction), 2) or float(f"{100 * float(fraction):.1g}")
    return items.number(name, percent, concept("unit", "percent"), children)
