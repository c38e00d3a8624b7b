"""Segmentations: that they fall on the lungs and the heat of the source's own pixels, and say what they show."""

from __future__ import annotations

import itertools
from io import BytesIO

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEGLSLossless, SegmentationStorage

from cxr_node.compose import compose_results
from cxr_node.compose.segmentation import LEVELS
from cxr_node.prepare.geometry import geometry_of
from cxr_node.records import Radiograph, ResultKind
from tests.compose_inputs import (
    KINDS_OF_PIXELS,
    LEFT_LUNG,
    MARK,
    NOW,
    ORIENTATIONS,
    RIGHT_LUNG,
    SIDE,
    findings,
    in_ellipse,
    lungs,
    lying,
    place_of,
    radiograph,
    source,
)

LUNGS, LEVELS_KIND, VALUES = ResultKind.LUNGS, ResultKind.HEATMAP, ResultKind.HEATVALUES
SEGMENTATIONS = pytest.mark.parametrize("kind", [LUNGS, LEVELS_KIND, VALUES])


def composed(kind, ds=None, rad=None, **changes):
    ds = source() if ds is None else ds
    (item,) = compose_results(ds, rad or radiograph(), findings(**changes), kinds=[kind], now=NOW)
    return pydicom.dcmread(BytesIO(item.content))


def frames(ds):
    """uint8 (segments, rows, columns)."""
    pixels = ds.pixel_array
    return pixels[None] if pixels.ndim == 2 else pixels


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids="".join)
@pytest.mark.parametrize(("shape", "photometric", "attributes"), KINDS_OF_PIXELS.values(), ids=KINDS_OF_PIXELS)
def test_the_lungs_lie_on_the_lungs_of_the_source_s_own_pixels(orientation, shape, photometric, attributes):
    """The way round: stored pixels → the networks' image → its dark parts as the mask → the segmentation → stored pixels."""
    ds, rad, dark = lying(orientation, shape, photometric, **attributes)
    seen = rad.network_image < 128
    right = seen & (np.arange(SIDE) < SIDE // 2)
    right_frame, left_frame = frames(composed(LUNGS, ds, rad, lungs=seen, right_lung=right)).astype(bool)
    assert dice(right_frame | left_frame, dark) > 0.985
    assert dice(right_frame, in_ellipse(orientation, shape, RIGHT_LUNG)) > 0.98
    assert dice(left_frame, in_ellipse(orientation, shape, LEFT_LUNG)) > 0.98


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids="".join)
def test_the_heat_lies_on_the_mark_of_the_source_s_own_pixels(orientation):
    shape = (420, 333)
    ds = source(PatientOrientation=list(orientation))
    rad = Radiograph(np.zeros(shape, np.float32), np.zeros((SIDE, SIDE), np.uint8), geometry_of(ds, *shape))
    row, column = place_of(orientation, *shape)
    expected = np.exp(-((row - MARK[0] - 0.5) ** 2 + (column - MARK[1] - 0.5) ** 2) / (2 * 14**2))
    expected *= in_ellipse(orientation, shape, RIGHT_LUNG) | in_ellipse(orientation, shape, LEFT_LUNG)
    (values,) = frames(composed(VALUES, ds, rad))
    well_inside = expected > 0.2
    assert np.abs(values / 255 - expected)[well_inside].mean() < 0.01
    levels = frames(composed(LEVELS_KIND, ds, rad)).astype(bool)
    for frame, low, high in zip(levels, LEVELS, (*LEVELS[1:], 2), strict=True):
        assert dice(frame, (expected >= low) & (expected < high)) > 0.95


def test_levels_and_lungs_do_not_overlap():
    for kind in (LUNGS, LEVELS_KIND):
        ds = composed(kind)
        assert set(np.unique(frames(ds))) == {0, 255}
        assert (frames(ds) > 0).sum(axis=0).max() == 1
        assert ds.SegmentsOverlap == "NO"


def test_there_is_no_heat_outside_the_lungs():
    everywhere = np.ones((SIDE, SIDE), np.float32)
    inside = frames(composed(LUNGS)).any(axis=0)
    assert (frames(composed(VALUES, heatmap=everywhere))[0] > 0).sum() == inside.sum()
    assert not (frames(composed(LEVELS_KIND, heatmap=everywhere)).any(axis=0) & ~inside).any()


def test_an_image_without_heat_has_its_levels_empty():
    ds = composed(LEVELS_KIND, heatmap=np.zeros((SIDE, SIDE), np.float32))
    assert (ds.NumberOfFrames, len(ds.SegmentSequence)) == (3, 3)
    assert not frames(ds).any()


def test_the_values_are_kept_exactly_by_their_compression():
    ds = composed(VALUES)
    assert ds.file_meta.TransferSyntaxUID == JPEGLSLossless
    assert (ds.SegmentationType, ds.SegmentationFractionalType, ds.MaximumFractionalValue) == ("FRACTIONAL", "PROBABILITY", 255)
    assert frames(ds).max() == 255
    assert ds.LossyImageCompression == "00"


@SEGMENTATIONS
def test_is_a_segmentation_of_the_source_s_rows_and_columns(kind):
    ds = composed(kind)
    assert ds.SOPClassUID == SegmentationStorage
    assert ds.Modality == "SEG"
    assert (ds.Rows, ds.Columns) == radiograph().pixels.shape
    assert "FrameOfReferenceUID" not in ds
    reference = ds.ReferencedSeriesSequence[0]
    assert reference.SeriesInstanceUID == source().SeriesInstanceUID
    assert reference.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == source().SOPInstanceUID


@SEGMENTATIONS
def test_each_frame_names_its_source_and_that_locations_are_preserved(kind):
    for group in composed(kind).PerFrameFunctionalGroupsSequence:
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        assert image.ReferencedSOPInstanceUID == source().SOPInstanceUID
        assert image.SpatialLocationsPreserved == "YES"


@SEGMENTATIONS
def test_highdicom_reads_it(kind):
    read = highdicom.seg.Segmentation.from_dataset(composed(kind))
    assert read.number_of_segments == len(read.SegmentSequence)


@pytest.mark.parametrize(
    ("attributes", "spacing"),
    [
        ({"PixelSpacing": [0.14, 0.15], "ImagerPixelSpacing": [0.2, 0.2]}, [0.14, 0.15]),
        ({"ImagerPixelSpacing": [0.2, 0.1]}, [0.2, 0.1]),
        ({"PixelAspectRatio": [2, 1]}, [2, 1]),
        ({"PixelSpacing": [0, 0]}, [1, 1]),
        ({}, [1, 1]),
    ],
)
def test_viewers_find_the_spacing_that_the_source_has(attributes, spacing):
    (shared,) = composed(LUNGS, source(**attributes)).SharedFunctionalGroupsSequence
    assert shared.PixelMeasuresSequence[0].PixelSpacing == spacing


@pytest.mark.parametrize("orientation", [["L", "F"], ["R", "F"], ["F", "R"], ["Q", ""], None])
def test_viewers_find_the_orientation_that_they_assume_for_the_source(orientation):
    (shared,) = composed(LUNGS, source(PatientOrientation=orientation)).SharedFunctionalGroupsSequence
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == [1, 0, 0, 0, 1, 0]


def test_names_the_lungs_by_code_and_side():
    segments = composed(LUNGS).SegmentSequence
    assert [segment.SegmentLabel for segment in segments] == ["Right lung", "Left lung"]
    for segment, side in zip(segments, ("24028007", "7771000"), strict=True):
        (kind,) = segment.SegmentedPropertyTypeCodeSequence
        assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("39607008", "SCT")
        assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == side
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        assert segment.SegmentAlgorithmName == "CXRNet"
        assert segment.TrackingUID


def test_names_the_levels_by_their_bounds():
    segments = composed(LEVELS_KIND).SegmentSequence
    assert [segment.SegmentLabel for segment in segments] == ["Heat 25% to 50%", "Heat 50% to 75%", "Heat 75% and above"]
    assert {segment.SegmentedPropertyTypeCodeSequence[0].CodeValue for segment in segments} == {"130404"}
    colours = [tuple(segment.RecommendedDisplayCIELabValue) for segment in segments]
    assert [lightness for lightness, *_ in colours] == sorted(lightness for lightness, *_ in colours)


@SEGMENTATIONS
def test_composing_twice_gives_the_same_bytes(kind):
    twice = [compose_results(source(), radiograph(), findings(), kinds=[kind], now=NOW) for _ in range(2)]
    assert twice[0] == twice[1]


@pytest.mark.parametrize(("way", "orientation"), list(itertools.product(({}, {"across": True}), (None, "L", ["L", "F", "H"]))))
def test_an_orientation_that_is_no_pair_is_left_empty(way, orientation):
    assert not composed(LUNGS, source(PatientOrientation=orientation), radiograph(**way)).PatientOrientation


def test_no_lungs_at_all_is_an_empty_segmentation():
    """What the pipeline turns away before it comes here; no crash all the same."""
    nothing = np.zeros_like(lungs())
    assert not frames(composed(LUNGS, lungs=nothing, right_lung=nothing)).any()
