"""Segmentations over the source's own pixels: the lungs, and the heat map as levels for readers and as values for machines.

A radiograph has no frame of reference, so each frame has the source's rows and columns and lies on it pixel for pixel
(PS3.3 A.51). Patient, study and equipment are `identity`'s to fill in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from highdicom import AlgorithmIdentificationSequence, PixelMeasuresSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from highdicom.seg import Segmentation as HighdicomSegmentation
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless

from cxr_node.compose.codes import code
from cxr_node.compose.identity import Place, bare_reference, value_of
from cxr_node.compose.source_pixels import SourceMaps, patient_orientation, pixel_aspect, pixel_spacing_mm
from cxr_node.records import MODEL_NAME, SIDES, Findings
from cxr_node.uids import derived_uid

LEVELS = (0.25, 0.5, 0.75)
"""Lower bounds of the levels of heat; each ends where the next begins, since viewers draw what doesn't overlap."""

_LUNG_COLOURS = ((120, 190, 255), (150, 235, 190))
_LEVEL_COLOURS = ((161, 27, 155), (222, 95, 101), (253, 172, 51))
"""RGB: the middles of the levels on the colour map of the overlay."""

_IN_THE_IMAGE_S_OWN_PLANE = [1, 0, 0, 0, 1, 0]
"""Image Orientation (Patient) that viewers assume for an image without one, as a radiograph is."""


def compose_lungs(source: Dataset, maps: SourceMaps, place: Place) -> Dataset:
    """The right (segment 1) and the left lung (segment 2), binary; not yet identified."""
    segments = []
    for number, (side, colour) in enumerate(zip(SIDES, _LUNG_COLOURS, strict=True), start=1):
        segment = _segment(
            number, f"{side.capitalize()} lung", code("segment", "anatomy"), code("site", "lung"), colour, maps.findings, place
        )
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [code("site", side)]
        segments.append(segment)
    return _compose(source, maps.lungs, SegmentationTypeValues.BINARY, segments, "LUNGS", "Lungs", place)


def compose_heat_levels(source: Dataset, maps: SourceMaps, place: Place) -> Dataset:
    """The heat map as one segment for each of LEVELS, binary, for viewers; not yet identified."""
    levels = np.zeros(maps.heat.shape, np.uint8)
    for low in LEVELS:
        levels += maps.heat >= round(255 * low)
    segments = []
    for number, (low, colour) in enumerate(zip(LEVELS, _LEVEL_COLOURS, strict=True), start=1):
        label = f"Heat {low:.0%} to {LEVELS[number]:.0%}" if number < len(LEVELS) else f"Heat {low:.0%} and above"
        segments.append(_heat_segment(number, label, colour, maps.findings, place))
    description = "Heat map as levels of the network's relevance, 0 to 100 %"
    return _compose(source, levels, SegmentationTypeValues.BINARY, segments, "HEAT LEVELS", description, place)


def compose_heat_values(source: Dataset, maps: SourceMaps, place: Place) -> Dataset:
    """The heat map's values, fractional and JPEG-LS, for machines: most viewers can't draw it; not yet identified."""
    heat = maps.heat
    segment = _heat_segment(1, "Heat", _LEVEL_COLOURS[-1], maps.findings, place)
    description = "Heat map: the network's relevance, 0 to 1"
    # highdicom sorts all values to find those beyond 1, which takes a second: it gets where they are, and we put them in
    where = (heat > 0).astype(np.uint8)
    ds = _compose(source, where, SegmentationTypeValues.FRACTIONAL, [segment], "HEAT VALUES", description, place)
    ds.compress(JPEGLSLossless, heat, encoding_plugin="pyjpegls", generate_instance_uid=False)
    return ds


def _compose(
    source: Dataset,
    labels: NDArray[np.uint8],
    kind: SegmentationTypeValues,
    segments: Sequence[SegmentDescription],
    label: str,
    description: str,
    place: Place,
) -> Dataset:
    """The object that highdicom makes, with what viewers ask for and highdicom leaves out.

    Args:
        source: the image's header.
        labels: uint8 (rows, columns), the number of the segment that a pixel belongs to.
        kind: binary or fractional.
        segments: what the numbers mean.
        label: Content Label, a code string.
        description: Content Description.
        place: the object's own UIDs and numbers.
    """
    image = bare_reference(source)
    image.Rows, image.Columns = labels.shape
    image.Modality = "DX"  # highdicom wants one; nothing of it reaches the object
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if value := value_of(source, keyword):
            setattr(image, keyword, value)
    ds = HighdicomSegmentation(
        [image],
        labels,
        kind,
        segments,
        **place.for_highdicom,
        content_label=label,
        content_description=description,
        pixel_measures=_pixel_measures(source),
        omit_empty_frames=False,  # an image without heat has its levels all the same, empty
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    organization = derived_uid("dimensions", place.sop_instance_uid)  # highdicom's is another each time
    ds.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    for index in ds.DimensionIndexSequence:
        index.DimensionOrganizationUID = organization
    ds.PatientOrientation = patient_orientation(source)
    ds.BodyPartExamined = "CHEST"  # without it Laterality is required (PS3.3 C.7.3.1)
    ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence = [_plane_orientation()]
    return ds


def _pixel_measures(source: Dataset) -> PixelMeasuresSequence:
    """Height and width of a pixel. Viewers show nothing without it: where the source is silent, 1 mm stands in, as it does
    where they measure in such a source. A projection has no thickness, but highdicom reads nothing without one.
    """
    return PixelMeasuresSequence(pixel_spacing_mm(source) or (pixel_aspect(source), 1.0), 1.0)


def _plane_orientation() -> Dataset:
    """Rows to the right, columns down, whatever the source's Patient Orientation says.

    OHIF waits for ever for a segmentation without it, and takes one with another orientation for orthogonal to its source. It
    is a convention: a projection has no plane in the patient, and so no position is given.
    """
    item = Dataset()
    item.ImageOrientationPatient = _IN_THE_IMAGE_S_OWN_PLANE
    return item


def _heat_segment(number: int, label: str, colour: tuple[int, int, int], findings: Findings, place: Place) -> SegmentDescription:
    segment = _segment(number, label, code("segment", "spatial"), code("segment", "saliency"), colour, findings, place)
    segment.AnatomicRegionSequence = [code("site", "lung")]
    return segment


def _segment(
    number: int,
    label: str,
    category: CodedConcept,
    property_type: CodedConcept,
    colour: tuple[int, int, int],
    findings: Findings,
    place: Place,
) -> SegmentDescription:
    """One segment, made by the network, with a tracking UID of its own."""
    model = findings.model
    return SegmentDescription(
        number,
        label,
        category,
        property_type,
        SegmentAlgorithmTypeValues.AUTOMATIC,
        AlgorithmIdentificationSequence(model.name, codes.DCM.ArtificialIntelligence, model.version, MODEL_NAME),
        tracking_uid=place.tracking_uid(label),
        tracking_id=label,
        display_color=CIELabColor.from_rgb(*colour),
    )
