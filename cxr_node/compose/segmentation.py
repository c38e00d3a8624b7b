"""Segmentations in the source's geometry: the lungs, and the heat map as levels for readers and as values for programs.

A radiograph has no frame of reference, so each frame has the source's rows and columns and lies on it pixel for pixel
(PS3.3 A.51). `identity` adds patient, study and equipment.

Lungs and heat levels have 8 bits and RLE although their only values are 0 and the maximum. With 1 bit, a frame can begin within a
byte if rows times columns is not a multiple of 8 (PS3.5 8.1.1), and Orthanc can't return a frame if the number of columns is not
a multiple of 8.
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
from pydicom import DataElement, Dataset
from pydicom.encaps import encapsulate
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from cxr_node.compose.codes import code
from cxr_node.compose.identity import ResultIdentity, bare_reference
from cxr_node.compose.rle import encode_masks
from cxr_node.compose.sides import lung_name, side_concept, stated_orientation
from cxr_node.compose.source_pixels import SourceMaps, compression_of, pixel_aspect, pixel_spacing_mm
from cxr_node.dicom.uids import derived_uid
from cxr_node.records import MODEL_NAME, SIDES, Findings

LEVELS = (0.25, 0.5, 0.75)
"""Lower bounds of the levels of heat; each ends where the next begins, since viewers draw what doesn't overlap."""

_LUNG_COLOURS = ((120, 190, 255), (150, 235, 190))
_LEVEL_COLOURS = ((161, 27, 155), (222, 95, 101), (253, 172, 51))
"""RGB: the middles of the levels on the colour map of the overlay."""

_IN_THE_IMAGE_S_OWN_PLANE = [1, 0, 0, 0, 1, 0]
"""Image Orientation (Patient) that viewers assume for an image without one, as a radiograph is."""


def compose_lungs(source: Dataset, maps: SourceMaps, place: ResultIdentity) -> Dataset:
    """The right (segment 1) and the left lung (segment 2), 0 or 255; not yet identified.

    Where sides aren't known, the segments are named by the side of the picture that they lie on.
    """
    sides, geometry = maps.findings.sides, maps.geometry
    segments = []
    for number, (side, colour) in enumerate(zip(SIDES, _LUNG_COLOURS, strict=True), start=1):
        segment = _segment(
            *(number, lung_name(side, sides, geometry), code("segment", "anatomy"), code("site", "lung"), colour),
            *(maps.findings, place),
        )
        modifier = CodedConcept(*side_concept(side, sides, geometry))
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
        segments.append(segment)
    return _as_rle(_compose(source, maps, segments, "LUNGS", "Lungs", place), maps.lungs)


def compose_heat_levels(source: Dataset, maps: SourceMaps, place: ResultIdentity) -> Dataset:
    """The heat map as one segment for each of LEVELS, 0 or 255, for viewers; not yet identified."""
    levels = np.zeros(maps.heat.shape, np.uint8)
    for low in LEVELS:
        levels += (maps.heat >= round(255 * low)).view(np.uint8)
    segments = []
    for number, (low, colour) in enumerate(zip(LEVELS, _LEVEL_COLOURS, strict=True), start=1):
        label = f"Heat {low:.0%} to {LEVELS[number]:.0%}" if number < len(LEVELS) else f"Heat {low:.0%} and above"
        segments.append(_heat_segment(number, label, colour, maps.findings, place))
    description = "Heat map as levels of the network's relevance, 0 to 100 %"
    ds = _compose(source, maps, segments, "HEAT LEVELS", description, place)
    return _as_rle(ds, levels)


def compose_heat_values(source: Dataset, maps: SourceMaps, place: ResultIdentity) -> Dataset:
    """The heat map's values, 0 to 255, JPEG-LS, for programs: most viewers can't draw it; not yet identified."""
    segment = _heat_segment(1, "Heat", _LEVEL_COLOURS[-1], maps.findings, place)
    description = "Heat map: the network's relevance, 0 to 1"
    ds = _compose(source, maps, [segment], "HEAT VALUES", description, place)
    ds.compress(JPEGLSLossless, maps.heat, encoding_plugin="pyjpegls", generate_instance_uid=False)
    return ds


def _as_rle(ds: Dataset, labels: NDArray[np.uint8]) -> Dataset:
    """The object with a frame for each segment, in RLE Lossless; labels: uint8 (rows, columns), the segments' numbers."""
    ds["PixelData"] = DataElement("PixelData", "OB", encapsulate(encode_masks(labels, ds.NumberOfFrames)))
    ds["PixelData"].is_undefined_length = True  # PS3.5 A.4
    ds.file_meta.TransferSyntaxUID = RLELossless
    return ds


def _compose(
    source: Dataset,
    maps: SourceMaps,
    segments: Sequence[SegmentDescription],
    label: str,
    description: str,
    place: ResultIdentity,
) -> Dataset:
    """The object that highdicom makes, with the attributes that viewers require and highdicom leaves out; its frames are missing.

    highdicom sorts, checks and copies frames several times, which takes a second where they are values and some 50 ms where they
    are masks. It gets one of a single pixel, and the caller puts in the real ones.

    Args:
        source: the image's header.
        maps: where the findings lie in it.
        segments: each of which is to be a frame.
        label: Content Label, a code string.
        description: Content Description.
        place: the object's own UIDs and numbers.
    """
    image = bare_reference(source)
    image.Rows = image.Columns = 1
    image.Modality = "DX"  # highdicom requires one; it does not appear in the object
    for keyword, value in compression_of(source).items():
        setattr(image, keyword, value)
    ds = HighdicomSegmentation(
        [image],
        np.zeros((1, 1), np.uint8),
        SegmentationTypeValues.FRACTIONAL,
        segments,
        **place.for_highdicom,
        content_label=label,
        content_description=description,
        pixel_measures=_pixel_measures(source),
        omit_empty_frames=False,  # an image without heat has empty levels
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    ds.Rows, ds.Columns = maps.geometry.rows, maps.geometry.columns
    organization = derived_uid("dimensions", place.sop_instance_uid)  # highdicom's is another each time
    ds.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    for index in ds.DimensionIndexSequence:
        index.DimensionOrganizationUID = organization
    ds.PatientOrientation = stated_orientation(source, maps.findings.sides)
    ds.BodyPartExamined = "CHEST"  # without it Laterality is required (PS3.3 C.7.3.1)
    ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence = [_plane_orientation()]
    return ds


def _pixel_measures(source: Dataset) -> PixelMeasuresSequence:
    """Height and width of a pixel. Viewers show nothing without it: if the source has none, 1 mm is used, as viewers do when
    they measure in such a source. A projection has no thickness, but highdicom reads nothing without one.
    """
    return PixelMeasuresSequence(pixel_spacing_mm(source) or (pixel_aspect(source), 1.0), 1.0)


def _plane_orientation() -> Dataset:
    """Rows to the right, columns down, whatever the source's Patient Orientation says.

    OHIF never finishes loading a segmentation without it, and treats one with another orientation as orthogonal to its source.
    It is a convention: a projection has no plane in the patient, so no position is given.
    """
    item = Dataset()
    item.ImageOrientationPatient = _IN_THE_IMAGE_S_OWN_PLANE
    return item


def _heat_segment(
    number: int, label: str, colour: tuple[int, int, int], findings: Findings, place: ResultIdentity
) -> SegmentDescription:
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
    place: ResultIdentity,
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
