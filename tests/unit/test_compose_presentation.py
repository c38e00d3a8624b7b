"""The presentation state: outlines that lie on the lungs of the source, layers, and the greys that the source asks for.

Over 300 lines: one object, and every grey of a source that it repeats.
"""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import cv2
import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.uid import GrayscaleSoftcopyPresentationStateStorage

from cxr_node.compose import compose_results
from cxr_node.prepare.render import render
from cxr_node.records import ResultKind
from tests.compose_inputs import NOW, findings, lungs, radiograph, source
from tests.images import lut_item

WAYS = [{}, {"across": True}, {"down": True}, {"transposed": True}, {"transposed": True, "down": True, "across": True}]


def composed(ds=None, way=None, **changes):
    ds = source() if ds is None else ds
    shown = replace(radiograph(**(way or {})), greys=greys_of(ds))
    (item,) = compose_results(ds, shown, findings(**changes), kinds=[ResultKind.PRESENTATION], now=NOW)
    return pydicom.dcmread(BytesIO(item.content))


def greys_of(ds):
    """What `render` makes of 12-bit values under this header."""
    stored = (np.arange(256 * 256).reshape(256, 256) % 4096).astype(np.uint16)
    return render(ds, stored)[1]


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
    assert text.UnformattedTextValue.startswith("Indeterminate: no class is probable enough (likeliest: Bacterial pneumonia 87%)")


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
    assert (voi.WindowCenter, voi.WindowWidth, voi.VOILUTFunction) == (2000, 3000, "SIGMOID")
    assert (ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType) == (2, -5, "US")


def test_takes_the_first_table_of_the_source():
    given = source()
    entries = [entry // 16 for entry in range(4096)]
    given.VOILUTSequence = [lut_item(0, 8, entries), lut_item(0, 8, entries[::-1])]
    ds = composed(given)
    (item,) = ds.SoftcopyVOILUTSequence[0].VOILUTSequence
    assert list(item.LUTData) == [257 * entry for entry in entries]
    assert "WindowCenter" not in ds.SoftcopyVOILUTSequence[0]


VOIS = {
    "linear": {"WindowCenter": 900, "WindowWidth": 1500},
    "linear exact": {"WindowCenter": 900, "WindowWidth": 1500, "VOILUTFunction": "LINEAR_EXACT"},
    "sigmoid": {"WindowCenter": 900, "WindowWidth": 1500, "VOILUTFunction": "SIGMOID"},
    "table": {"VOILUTSequence": [lut_item(100, 12, [int(4095 * (entry / 2900) ** 0.5) for entry in range(2901)])]},
    "none": {},
}


@pytest.mark.parametrize("bits", [8, 10, 12, 15, 16])
@pytest.mark.parametrize("voi", VOIS)
def test_shows_the_tables_of_the_source_as_the_overlay_does(voi, bits):
    """Every viewer's chain (PS3.4 section N.2), here pydicom's, makes of the stored values what `render` made of them."""
    given = source(**VOIS[voi])
    top = min(2**bits - 1, 3000)
    given.ModalityLUTSequence = [lut_item(0, bits, [round(top * (1 - entry / 4095) ** 1.2) for entry in range(4096)])]
    given.ModalityLUTSequence[0].ModalityLUTType = "OD"
    if voi != "none" and bits < 12:
        given.VOILUTFunction = given.get("VOILUTFunction", "LINEAR")
        for keyword in ("WindowCenter", "WindowWidth"):
            if keyword in given:
                given[keyword].value = max(2, int(given[keyword].value * top / 3000))
    stored = (np.arange(256 * 256).reshape(256, 256) % 4096).astype(np.uint16)
    pixels, greys = render(given, stored)
    (item,) = compose_results(given, replace(radiograph(), greys=greys), findings(), kinds=[ResultKind.PRESENTATION], now=NOW)
    state = pydicom.dcmread(BytesIO(item.content))
    (table,) = state.ModalityLUTSequence
    assert table.LUTDescriptor[2] == 16
    shown = Dataset()
    shown.PixelRepresentation, shown.BitsStored, shown.BitsAllocated, shown.PhotometricInterpretation = 0, 16, 16, "MONOCHROME2"
    shown.set_original_encoding(False, True)
    shown.ModalityLUTSequence = state.ModalityLUTSequence
    values = apply_modality_lut(stored, shown)
    chain = state.SoftcopyVOILUTSequence[0]
    for element in chain:
        shown.add(element)
    seen = apply_voi_lut(values.astype(np.uint16), shown) / 65535
    assert np.abs(seen - pixels).max() < 0.01


def test_a_long_table_that_begins_below_zero_is_written():
    given = source(PixelRepresentation=1)
    given.VOILUTSequence = [lut_item(-30000, 16, list(range(60000)))]
    stored = (np.arange(256 * 256).reshape(256, 256) - 2**15).astype(np.int16)
    (item,) = compose_results(
        given,
        replace(radiograph(), greys=render(given, stored)[1]),
        findings(),
        kinds=[ResultKind.PRESENTATION],
        now=NOW,
    )
    (table,) = pydicom.dcmread(BytesIO(item.content)).SoftcopyVOILUTSequence[0].VOILUTSequence
    assert list(table.LUTDescriptor) == [60000, -30000, 16]


@pytest.mark.parametrize(
    "attributes",
    [
        {"WindowCenter": "", "WindowWidth": ""},
        {"WindowCenter": "2048", "WindowWidth": "0"},
        {"WindowCenter": "40000", "WindowWidth": "100"},
        {"WindowCenter": "128", "WindowWidth": "256"},
        {"WindowCenter": "2048", "WindowWidth": "1"},
    ],
    ids=str,
)
def test_a_window_that_is_not_believed_gives_way_to_the_one_that_the_overlay_has(attributes):
    (voi,) = composed(source(**attributes)).SoftcopyVOILUTSequence
    # 0.5 and 99.5 percentile of 0..4095 become black and white (PS3.3 C.11.2.1.2.1)
    low, high = (voi.WindowCenter - 0.5 - sign * (voi.WindowWidth - 1) / 2 for sign in (1, -1))
    assert low == pytest.approx(20.5, abs=1)
    assert high == pytest.approx(4074.5, abs=1)
    assert "VOILUTFunction" not in voi


def test_a_good_window_after_a_bad_one_is_taken():
    (voi,) = composed(source(WindowCenter=[128, 2048], WindowWidth=[256, 4096])).SoftcopyVOILUTSequence
    assert (voi.WindowCenter, voi.WindowWidth) == (2048, 4096)


def test_a_slope_of_nothing_is_not_repeated():
    ds = composed(source(RescaleSlope="0", RescaleIntercept="0"))
    assert (ds.RescaleSlope, ds.RescaleIntercept) == (1, 0)


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_a_table_is_written_with_entries_of_as_many_bits_as_it_says(bits):
    given = source()
    given.VOILUTSequence = [lut_item(0, bits, list(range(4096)))]
    (item,) = composed(given).SoftcopyVOILUTSequence[0].VOILUTSequence
    assert list(item.LUTDescriptor) == [4096, 0, 16]
    assert (item.LUTData[0], item.LUTData[-1]) == (0, 65535)


@pytest.mark.parametrize(
    "shutter",
    [
        {
            **{"ShutterShape": "RECTANGULAR", "ShutterLeftVerticalEdge": 21, "ShutterRightVerticalEdge": 200},
            **{"ShutterUpperHorizontalEdge": 11, "ShutterLowerHorizontalEdge": 240},
        },
        {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [128, 128], "RadiusOfCircularShutter": 100},
        {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [10, 10, 10, 240, 240, 240, 240, 10]},
    ],
    ids=lambda shutter: shutter["ShutterShape"],
)
def test_keeps_the_shutter_of_the_source(shutter):
    ds = composed(source(**shutter))
    for keyword, value in shutter.items():
        assert ds[keyword].value == value
    assert ds.ShutterPresentationValue == 0


OPENS_NOTHING = {
    "RECTANGULAR": {
        **{"ShutterLeftVerticalEdge": 0, "ShutterRightVerticalEdge": 0},
        **{"ShutterUpperHorizontalEdge": 0, "ShutterLowerHorizontalEdge": 0},
    },
    "CIRCULAR": {"CenterOfCircularShutter": [128, 128], "RadiusOfCircularShutter": 0},
    "POLYGONAL": {"VerticesOfThePolygonalShutter": [10, 10, 10, 240]},
}


@pytest.mark.parametrize(("shape", "measures"), OPENS_NOTHING.items(), ids=OPENS_NOTHING)
def test_a_shape_that_the_overlay_passes_over_is_not_repeated(shape, measures):
    """A viewer would apply it, and hide the whole image."""
    other = "CIRCULAR" if shape == "RECTANGULAR" else "RECTANGULAR"
    good = {
        "CIRCULAR": {"CenterOfCircularShutter": [128, 128], "RadiusOfCircularShutter": 100},
        "RECTANGULAR": {
            **{"ShutterLeftVerticalEdge": 21, "ShutterRightVerticalEdge": 200},
            **{"ShutterUpperHorizontalEdge": 11, "ShutterLowerHorizontalEdge": 240},
        },
    }[other]
    ds = composed(source(ShutterShape=[shape, other], **measures, **good))
    assert ds.ShutterShape == other
    assert all(ds[keyword].value == value for keyword, value in good.items())
    assert not any(keyword in ds for keyword in measures)


def test_a_source_without_a_shutter_has_none():
    assert "ShutterShape" not in composed()


def test_a_shutter_that_hides_everything_is_not_believed():
    closed = {"ShutterShape": "RECTANGULAR", "ShutterLeftVerticalEdge": 5, "ShutterRightVerticalEdge": 5}
    ds = composed(source(**closed, ShutterUpperHorizontalEdge=5, ShutterLowerHorizontalEdge=5))
    assert "ShutterShape" not in ds


@pytest.mark.parametrize(
    "attributes",
    [
        {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
        {"SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL_422"},
        {"SamplesPerPixel": 1, "PhotometricInterpretation": "PALETTE COLOR"},
    ],
    ids=lambda attributes: attributes["PhotometricInterpretation"],
)
def test_a_source_in_colour_has_none(attributes):
    """A grayscale presentation state refers to grayscale images (PS3.3 A.33.1)."""
    kinds = [ResultKind.PRESENTATION, ResultKind.REPORT]
    made = compose_results(source(**attributes), radiograph(), findings(), kinds=kinds, now=NOW)
    assert [item.kind for item in made] == [ResultKind.REPORT]


def test_the_layers_can_be_switched_one_by_one():
    ds = composed()
    assert [item.GraphicLayer for item in ds.GraphicLayerSequence] == ["LUNGS", "ZONES", "RESULT"]
    assert all(isinstance(item, Dataset) and item.GraphicLayerDescription for item in ds.GraphicLayerSequence)


def test_composing_twice_gives_the_same_bytes():
    twice = [compose_results(source(), radiograph(), findings(), kinds=[ResultKind.PRESENTATION], now=NOW) for _ in range(2)]
    assert twice[0] == twice[1]
