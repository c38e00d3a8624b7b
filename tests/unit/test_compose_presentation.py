"""The presentation state: outlines that lie on the lungs of the source, layers, and the greys that the source asks for."""

from __future__ import annotations

from io import BytesIO

import cv2
import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import GrayscaleSoftcopyPresentationStateStorage

from cxr_node.compose import compose_results
from cxr_node.records import ResultKind
from tests.composing import NOW, findings, lungs, radiograph, source
from tests.images import lut_item

WAYS = [{}, {"across": True}, {"down": True}, {"transposed": True}, {"transposed": True, "down": True, "across": True}]


def composed(ds=None, way=None, **changes):
    ds = source() if ds is None else ds
    (item,) = compose_results(ds, radiograph(**(way or {})), findings(**changes), kinds=[ResultKind.PRESENTATION], now=NOW)
    return pydicom.dcmread(BytesIO(item.content))


def layer(ds, name):
    (found,) = [item for item in ds.GraphicAnnotationSequence if item.GraphicLayer == name]
    return found


def points(graphic):
    return np.array(graphic.GraphicData, np.float64).reshape(-1, 2)


def in_source(upright, *, transposed=False, down=False, across=False):
    upright = upright[:, ::-1] if across else upright
    upright = upright[::-1] if down else upright
    return upright.T if transposed else upright


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_outlines_enclose_the_lungs_in_the_source_s_own_pixels(way):
    rows, columns = radiograph(**way).pixels.shape
    drawn = np.zeros((rows, columns), np.uint8)
    graphics = layer(composed(way=way), "LUNGS").GraphicObjectSequence
    assert len(graphics) == 2
    for graphic in graphics:
        outline = points(graphic)
        assert (outline[0] == outline[-1]).all()
        assert (graphic.GraphicType, graphic.GraphicAnnotationUnits) == ("POLYLINE", "PIXEL")
        cv2.fillPoly(drawn, [np.rint(outline - 0.5).astype(np.int32)], 1)
    shown = np.ascontiguousarray(in_source(lungs(), **way)).astype(np.uint8)
    expected = cv2.resize(shown, (columns, rows), None, 0, 0, cv2.INTER_NEAREST)
    assert 2 * (drawn & expected).sum() / (drawn.sum() + expected.sum()) > 0.98


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_zone_borders_lie_across_the_lungs(way):
    """Their middles are inside the lungs, and the patient's head is on the same side of all."""
    borders = layer(composed(way=way), "ZONES").GraphicObjectSequence
    assert len(borders) == 4
    rows, columns = radiograph(**way).pixels.shape
    shown = in_source(lungs(), **way)
    for border in borders:
        column, row = points(border).mean(axis=0)
        assert shown[int(row * shown.shape[0] / rows), int(column * shown.shape[1] / columns)]


def test_each_zone_says_its_share_of_the_heat():
    texts = layer(composed(), "ZONES").TextObjectSequence
    assert [text.UnformattedTextValue for text in texts] == ["10%", "50%", "30%", "4%", "5%", "1%"]
    right_upper, left_upper = np.array(texts[0].AnchorPoint), np.array(texts[3].AnchorPoint)
    assert right_upper[0] < left_upper[0]
    assert texts[0].AnchorPoint[1] < texts[1].AnchorPoint[1] < texts[2].AnchorPoint[1]


def test_the_label_has_class_probability_and_warning():
    (text,) = layer(composed(), "RESULT").TextObjectSequence
    assert text.UnformattedTextValue == "Bacterial pneumonia 87%\r\nAI result, not for primary diagnosis"
    assert text.BoundingBoxAnnotationUnits == "DISPLAY"


def test_an_indeterminate_result_is_called_so():
    (text,) = layer(composed(indeterminate_below=0.9), "RESULT").TextObjectSequence
    assert text.UnformattedTextValue.startswith("Indeterminate: two classes are close (likeliest: Bacterial pneumonia 87%)")


def test_refers_to_the_source():
    ds = composed()
    assert ds.SOPClassUID == GrayscaleSoftcopyPresentationStateStorage
    (series,) = ds.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source().SeriesInstanceUID
    assert series.ReferencedImageSequence[0].ReferencedSOPInstanceUID == source().SOPInstanceUID
    area = ds.DisplayedAreaSelectionSequence[0]
    rows, columns = radiograph().pixels.shape
    assert area.DisplayedAreaBottomRightHandCorner == [columns, rows]


def test_pixels_that_are_not_square_are_shown_in_their_proportions():
    area = composed(source(ImagerPixelSpacing=[0.3, 0.2])).DisplayedAreaSelectionSequence[0]
    assert area.PresentationPixelAspectRatio == [1500, 1000]


@pytest.mark.parametrize(
    ("photometric", "inverted", "shape"),
    [
        ("MONOCHROME2", False, "IDENTITY"),
        ("MONOCHROME1", False, "INVERSE"),
        ("MONOCHROME2", True, "INVERSE"),
        ("MONOCHROME1", True, "IDENTITY"),
        (None, False, "IDENTITY"),
    ],
)
def test_shows_lungs_dark(photometric, inverted, shape):
    ds = composed(source(PhotometricInterpretation=photometric), greys_inverted=inverted)
    assert ds.PresentationLUTShape == shape


def test_takes_the_window_and_the_rescaling_of_the_source():
    given = source(
        WindowCenter=[2000, 1800], WindowWidth=[3000, 900], VOILUTFunction="SIGMOID", RescaleSlope=2, RescaleIntercept=-5
    )
    ds = composed(given)
    (voi,) = ds.SoftcopyVOILUTSequence
    assert (voi.WindowCenter, voi.WindowWidth, voi.VOILUTFunction) == ([2000, 1800], [3000, 900], "SIGMOID")
    assert (ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType) == (2, -5, "US")


def test_takes_the_tables_of_the_source():
    given = source()
    given.VOILUTSequence = [lut_item(0, 8, [0, 100, 200, 255])]
    given.ModalityLUTSequence = [lut_item(0, 8, [0, 1, 2, 3])]
    given.ModalityLUTSequence[0].ModalityLUTType = "US"
    ds = composed(given)
    assert list(ds.SoftcopyVOILUTSequence[0].VOILUTSequence[0].LUTData) == [0, 100, 200, 255]
    assert list(ds.ModalityLUTSequence[0].LUTData) == [0, 1, 2, 3]


def test_a_source_without_greys_of_its_own_has_none_here():
    ds = composed(source(WindowCenter="", WindowWidth=""))
    assert "SoftcopyVOILUTSequence" not in ds
    assert "RescaleSlope" not in ds


def test_the_layers_can_be_switched_one_by_one():
    ds = composed()
    assert [item.GraphicLayer for item in ds.GraphicLayerSequence] == ["LUNGS", "ZONES", "RESULT"]
    assert all(isinstance(item, Dataset) and item.GraphicLayerDescription for item in ds.GraphicLayerSequence)


def test_composing_twice_gives_the_same_bytes():
    twice = [compose_results(source(), radiograph(), findings(), kinds=[ResultKind.PRESENTATION], now=NOW) for _ in range(2)]
    assert twice[0] == twice[1]
