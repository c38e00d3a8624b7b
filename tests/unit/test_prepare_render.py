"""Bit depth × photometric interpretation × LUT × transfer syntax, with values worked out by hand.

Over 300 lines: the table of forms is long.
"""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataelem import RawDataElement
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from cxr_node.errors import Rejected
from cxr_node.prepare import render as rendering
from cxr_node.prepare.decode import decode_pixels, read_dataset
from cxr_node.prepare.radiograph import prepare_dataset
from tests.images import grey_image, lut_item, ramp, save

SYNTAXES = {
    "implicit": ImplicitVRLittleEndian,
    "explicit": ExplicitVRLittleEndian,
    "big-endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "rle": RLELossless,
    "jpeg-ls": JPEGLSLossless,
    "jpeg-2000": JPEG2000Lossless,
}

DEPTHS = {
    "8": (np.uint8, 8),
    "12": (np.uint16, 12),
    "16": (np.uint16, 16),
    "signed-12": (np.int16, 12),
    "signed-16": (np.int16, 16),
}

LUTS = {
    # PS3.3 C.11.2.1.2.1: ((x - (c - 0.5)) / (w - 1)) + 0.5 with c = 100, w = 51 is (x - 99.5) / 50 + 0.5
    "linear": (
        {"WindowCenter": "100", "WindowWidth": "51"},
        {60: 0.0, 74: 0.0, 75: 0.01, 92: 0.35, 100: 0.51, 124: 0.99, 126: 1.0},
    ),
    # PS3.3 C.11.2.1.3.2: (x - c) / w + 0.5
    "linear-exact": (
        {"WindowCenter": "100", "WindowWidth": "50", "VOILUTFunction": "LINEAR_EXACT"},
        {60: 0.0, 75: 0.0, 90: 0.3, 100: 0.5, 115: 0.8, 125: 1.0, 126: 1.0},
    ),
    # PS3.3 C.11.2.1.3.1: 1 / (1 + exp(-4 (x - c) / w)); 1 / (1 + e^2) = 0.119203, 1 / (1 + e^-2) = 0.880797
    "sigmoid": (
        {"WindowCenter": "100", "WindowWidth": "50", "VOILUTFunction": "SIGMOID"},
        {75: 0.119203, 100: 0.5, 125: 0.880797},
    ),
    # entries of 8 bits: 51 / 255 = 0.2
    "voi-lut": (
        {"VOILUTSequence": [lut_item(98, 8, [0, 51, 204, 255])]},
        {60: 0.0, 98: 0.0, 99: 0.2, 100: 0.8, 101: 1.0, 126: 1.0},
    ),
    # entries of 10 bits, and a window that must lose against the LUT
    "voi-lut-10-bit": (
        {"VOILUTSequence": [lut_item(60, 10, [1023, 682, 341, 0])], "WindowCenter": "1", "WindowWidth": "2"},
        {59: 1.0, 60: 1.0, 61: 0.666667, 62: 0.333333, 63: 0.0, 126: 0.0},
    ),
    # 2 x - 100, then the exact window around 100
    "rescale": (
        {
            "RescaleSlope": "2",
            "RescaleIntercept": "-100",
            "WindowCenter": "100",
            "WindowWidth": "50",
            "VOILUTFunction": "LINEAR_EXACT",
        },
        {80: 0.0, 95: 0.3, 100: 0.5, 110: 0.9, 120: 1.0},
    ),
    # a negative slope: 50 - x, seen through -50 ± 50
    "negative-slope": (
        {
            "RescaleSlope": "-1",
            "RescaleIntercept": "50",
            "WindowCenter": "-50",
            "WindowWidth": "100",
            "VOILUTFunction": "LINEAR_EXACT",
        },
        {50: 1.0, 75: 0.75, 100: 0.5, 120: 0.3},
    ),
    # table of 16 bits: 100 becomes 1000, which the window puts in its middle
    "modality-lut": (
        {
            "ModalityLUTSequence": [lut_item(99, 16, [900, 1000, 1040])],
            "WindowCenter": "1000",
            "WindowWidth": "200",
            "VOILUTFunction": "LINEAR_EXACT",
        },
        {98: 0.0, 99: 0.0, 100: 0.5, 101: 0.7, 120: 0.7},
    ),
    # the first window of two
    "two-windows": (
        {"WindowCenter": ["100", "7"], "WindowWidth": ["50", "3"], "VOILUTFunction": "LINEAR_EXACT"},
        {75: 0.0, 100: 0.5, 115: 0.8},
    ),
}


def pixels_of(values, dtype):
    """(40, 60) that holds the values again and again."""
    return np.resize(np.array(list(values)), (40, 60)).astype(dtype)


def render(ds, stored):
    """The pixels alone."""
    return rendering.render(ds, stored)[0]


@pytest.mark.parametrize("syntax", SYNTAXES.values(), ids=SYNTAXES)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("dtype", "bits"), DEPTHS.values(), ids=DEPTHS)
@pytest.mark.parametrize(("attributes", "expected"), LUTS.values(), ids=LUTS)
def test_renders_the_values_worked_out_by_hand(attributes, expected, dtype, bits, photometric, syntax, tmp_path):
    stored = pixels_of(expected, dtype)
    ds = grey_image(stored, bits, syntax, PhotometricInterpretation=photometric, **attributes)
    ds = read_dataset(save(ds, tmp_path / "image.dcm"))

    seen = render(ds, decode_pixels(ds))

    wanted = np.vectorize(expected.get)(stored)
    np.testing.assert_allclose(seen, 1 - wanted if photometric == "MONOCHROME1" else wanted, atol=1e-5)
    assert seen.dtype == np.float32


def test_signed_values_below_zero_are_below_the_window():
    stored = pixels_of([-2000, -1, 0, 1, 2000], np.int16)
    ds = grey_image(stored, 16, WindowCenter="0", WindowWidth="4", VOILUTFunction="LINEAR_EXACT")
    assert render(ds, stored)[0, :5].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_a_voi_lut_written_unsigned_for_signed_values_starts_below_zero():
    stored = pixels_of([-11, -10, -9, -8], np.int16)
    item = lut_item(0, 8, [0, 51, 255])
    item.LUTDescriptor = [3, 2**16 - 10, 8]
    seen = render(grey_image(stored, 16, VOILUTSequence=[item]), stored)
    np.testing.assert_allclose(seen[0, :4], [0, 0, 0.2, 1])


@pytest.mark.parametrize("little_endian", [True, False])
def test_a_lut_of_bytes_is_read_in_the_order_of_its_data_set(little_endian):
    stored = pixels_of([0, 1, 2], np.uint8)
    item = lut_item(0, 16, [0])
    item.LUTDescriptor = [3, 0, 16]
    item.add_new("LUTData", "OW", np.array([0, 13107, 65535], "<u2" if little_endian else ">u2").tobytes())
    ds = grey_image(stored, 8, ExplicitVRLittleEndian if little_endian else ExplicitVRBigEndian, VOILUTSequence=[item])
    np.testing.assert_allclose(render(ds, stored)[0, :3], [0, 0.2, 1], atol=1e-6)


def test_a_lut_of_packed_bytes_is_read_byte_by_byte():
    stored = pixels_of([0, 1, 2, 3], np.uint8)
    item = lut_item(0, 8, [0])
    item.LUTDescriptor = [4, 0, 8]
    item.add_new("LUTData", "OW", bytes([0, 51, 204, 255]))
    np.testing.assert_allclose(render(grey_image(stored, VOILUTSequence=[item]), stored)[0, :4], [0, 0.2, 0.8, 1], atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    centre=st.integers(500, 3500),
    width=st.integers(3000, 6000),
    slope=st.sampled_from(["1", "0.5", "2.25", "-1"]),
    intercept=st.integers(-1000, 1000),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
)
def test_agrees_with_pydicom(centre, width, slope, intercept, function):
    stored = (np.arange(128 * 128).reshape(128, 128) % 4096).astype(np.uint16)
    middle = float(slope) * centre + intercept  # keeps the window over the values
    ds = grey_image(
        stored,
        12,
        RescaleSlope=slope,
        RescaleIntercept=str(intercept),
        WindowCenter=f"{middle:g}",
        WindowWidth=str(width),
        VOILUTFunction=function,
    )
    theirs = apply_voi_lut(apply_modality_lut(stored, ds), ds)
    ends = sorted(float(slope) * end + intercept for end in (0, 4095))
    scaled = (theirs - ends[0]) / (ends[1] - ends[0])
    if float(slope) < 0 and function != "SIGMOID":  # pydicom's range then runs from high to low
        scaled = 1 - scaled
    if float(slope) < 0 and function == "SIGMOID":
        return  # its offset is then the upper end of the range, which takes the sigmoid out of 0..1
    np.testing.assert_allclose(render(ds, stored), scaled, atol=2e-4)


@pytest.mark.parametrize(("dtype", "bits"), DEPTHS.values(), ids=DEPTHS)
def test_monochrome1_of_inverted_values_equals_monochrome2(dtype, bits):
    stored = (np.arange(128 * 128).reshape(128, 128) % 128).astype(dtype)
    window = {"WindowCenter": "63.5", "WindowWidth": "127", "VOILUTFunction": "LINEAR_EXACT"}
    two = render(grey_image(stored, bits, **window), stored)
    inverted = (127 - stored).astype(dtype)
    one = render(grey_image(inverted, bits, PhotometricInterpretation="MONOCHROME1", **window), inverted)
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_monochrome1_is_inverted_after_the_voi_and_not_before():
    stored = pixels_of([0, 40, 60, 255], np.uint8)
    ds = grey_image(
        stored, PhotometricInterpretation="MONOCHROME1", WindowCenter="50", WindowWidth="100", VOILUTFunction="LINEAR_EXACT"
    )
    np.testing.assert_allclose(render(ds, stored)[0, :4], [1, 0.6, 0.4, 0], atol=1e-6)


def test_presentation_lut_shape_inverse_does_not_invert_monochrome1_back():
    stored = pixels_of([0, 50, 255], np.uint8)
    window = {"WindowCenter": "128", "WindowWidth": "256"}
    plain = grey_image(stored, PhotometricInterpretation="MONOCHROME1", **window)
    shaped = grey_image(stored, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE", **window)
    assert np.array_equal(render(plain, stored), render(shaped, stored))
    assert render(shaped, stored)[0, 0] == 1


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_padding_is_nan_and_takes_no_part_in_the_windowing(dtype):
    stored = (np.arange(200 * 200).reshape(200, 200) % 997 + 1000).astype(dtype)
    plain = render(grey_image(stored, 16), stored)
    padded = stored.copy()
    padded[:, :60] = -500 if dtype == np.int16 else 60000
    ds = grey_image(padded, 16, PixelPaddingValue=int(padded[0, 0]))
    seen = render(ds, padded)
    assert np.isnan(seen[:, :60]).all()
    np.testing.assert_allclose(seen[:, 60:], plain[:, 60:], atol=0.01)


def test_a_padding_range_is_heeded_whichever_end_comes_first():
    stored = pixels_of([5, 10, 15, 20, 200], np.uint8)
    for first, last in ((5, 10), (10, 5)):
        seen = render(grey_image(stored, PixelPaddingValue=first, PixelPaddingRangeLimit=last), stored)
        assert np.isnan(seen[0, :5]).tolist() == [True, True, False, False, False]


def test_a_padding_value_written_unsigned_means_its_bits():
    stored = pixels_of([-2000, 0, 500], np.int16)
    ds = grey_image(stored, 16, WindowCenter="0", WindowWidth="1000")
    ds.add_new("PixelPaddingValue", "US", 2**16 - 2000)
    assert np.isnan(render(ds, stored)[0, :3]).tolist() == [True, False, False]


def test_without_a_voi_the_borders_do_not_set_the_window():
    inside = (np.arange(200 * 200).reshape(200, 200) % 500 + 1000).astype(np.uint16)
    stored = np.full((400, 400), 4095, np.uint16)
    stored[100:300, 100:300] = inside
    seen = render(grey_image(stored, 12), stored)[100:300, 100:300]
    assert seen.min() == 0
    assert seen.max() == 1
    assert seen.mean() == pytest.approx(0.5, abs=0.02)


def test_a_window_beside_all_values_is_not_believed():
    stored = (np.arange(200 * 200).reshape(200, 200) % 500 + 1000).astype(np.uint16)
    ds = grey_image(stored, 12, WindowCenter="4000", WindowWidth="10")
    assert np.array_equal(render(ds, stored), render(grey_image(stored, 12), stored))


@pytest.mark.parametrize("window", [{"WindowCenter": "128", "WindowWidth": "0"}, {"WindowCenter": "128"}])
def test_a_window_without_width_is_not_believed(window):
    stored = pixels_of(range(0, 256, 5), np.uint8)
    assert np.array_equal(render(grey_image(stored, **window), stored), render(grey_image(stored), stored))


@pytest.mark.parametrize(("sign", "photometric"), [(1, "MONOCHROME1"), (1, "MONOCHROME2"), (-1, "MONOCHROME2")])
def test_for_processing_little_intensity_is_bright(sign, photometric):
    intensity = np.tile(np.geomspace(100, 4000, 256), (200, 1))
    stored = (intensity if sign == 1 else 4095 - intensity).round().astype(np.uint16)
    ds = grey_image(
        stored,
        12,
        PhotometricInterpretation=photometric,
        PresentationIntentType="FOR PROCESSING",
        PixelIntensityRelationship="LIN",
        PixelIntensityRelationshipSign=sign,
    )
    seen = render(ds, stored)
    assert seen[0, 0] == 1
    assert seen[0, -1] == 0
    assert seen[0, 128] > 0.25, "without the logarithm the middle of the attenuations would be dark"


def test_a_window_that_is_no_number_is_not_believed():
    stored = pixels_of(range(0, 256, 5), np.uint8)
    ds = grey_image(stored, WindowWidth="100")
    ds._dict[Tag("WindowCenter")] = RawDataElement(Tag("WindowCenter"), "DS", 4, b"l00 ", 0, False, True)
    assert np.array_equal(render(ds, stored), render(grey_image(stored), stored))


def test_values_of_32_bits_are_rendered_too():
    stored = pixels_of([0, 50_000, 100_000], np.uint32)
    ds = grey_image(stored, 32, WindowCenter="50000", WindowWidth="100000", VOILUTFunction="LINEAR_EXACT")
    assert render(ds, stored)[0, :3].tolist() == [0, 0.5, 1]


@pytest.mark.peer
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("dtype", "bits"), DEPTHS.values(), ids=DEPTHS)
@pytest.mark.parametrize("lut", ["linear", "voi-lut", "rescale", "modality-lut"])
def test_agrees_with_dcmtk(lut, dtype, bits, photometric, peer, tmp_path):
    attributes, expected = LUTS[lut]
    attributes = {**attributes, "VOILUTFunction": "LINEAR"}  # the only one that dcmtk knows
    stored = pixels_of(expected, dtype)
    path = save(grey_image(stored, bits, PhotometricInterpretation=photometric, **attributes), tmp_path / "image.dcm")
    voi = "+Wl" if lut == "voi-lut" else "+Wi"
    subprocess.run([peer("dcm2pnm"), "+opw", voi, "1", path, tmp_path / "image.pgm"], check=True, capture_output=True)
    lines = (line for line in (tmp_path / "image.pgm").read_text().splitlines() if not line.startswith("#"))
    kind, columns, rows, maximum, *values = " ".join(lines).split()
    assert (kind, columns, rows) == ("P2", "60", "40")
    theirs = np.array(values, float).reshape(40, 60) / float(maximum)
    np.testing.assert_allclose(render(read_dataset(path), stored), theirs, atol=0.0045)  # dcmtk divides entries of 8 bits by 256


def body():
    """(200, 240) of 12-bit values as a radiograph has them: 400 to 3600, every level, in a mixed order."""
    levels = np.linspace(400, 3600, 200 * 240).astype(np.uint16)
    return np.random.default_rng(3).permutation(levels).reshape(200, 240)


def framed_body():
    """`body` in a frame of 0."""
    return np.pad(body(), 20)


@pytest.mark.parametrize(
    ("first", "limit"),
    [(1000, 3000), (400, 4000), (2000, None), (4095, None)],
    ids=["in the middle", "all of the patient", "a grey of the patient", "absent"],
)
def test_padding_amid_the_patient_s_own_greys_is_not_believed(first, limit):
    stored = framed_body()
    ds = grey_image(stored, 12, PixelPaddingValue=first)
    if limit is not None:
        ds.PixelPaddingRangeLimit = limit
    assert not np.isnan(render(ds, stored)).any()


def test_padding_at_the_edges_is_believed_though_some_of_its_grey_lies_within():
    stored = framed_body()
    stored[100:104, 100:104] = 0
    seen = render(grey_image(stored, 12, PixelPaddingValue=0), stored)
    assert np.isnan(seen[:20]).all()
    assert np.isnan(seen).mean() < 0.4


@pytest.mark.parametrize(
    "item",
    [
        lambda: lut_item(0, 12, [7] * 4096),
        lambda: described(lut_item(0, 12, list(range(4096))), [4096, 0, 12], entries=100),
    ],
    ids=["of one value", "shorter than it says"],
)
def test_a_modality_lut_that_erases_the_image_is_passed_over(item):
    stored = body()
    ds = grey_image(stored, 12, ModalityLUTSequence=[item()], RescaleSlope="1", RescaleIntercept="0")
    seen, greys = rendering.render(ds, stored)
    assert np.array_equal(seen, render(grey_image(stored, 12), stored))
    assert greys.modality_lut is None


def described(item, descriptor, entries=None):
    """A LUT item that says something else of itself, and has no more than so many entries."""
    item.LUTDescriptor = descriptor
    item.LUTData = item.LUTData[:entries]
    return item


def test_a_voi_lut_with_fewer_entries_than_it_says_gives_way_to_the_window():
    stored = body()
    short = described(lut_item(0, 12, list(range(4096))), [4096, 0, 12], entries=2000)
    window = {"WindowCenter": "2000", "WindowWidth": "4000"}
    seen = render(grey_image(stored, 12, VOILUTSequence=[short], **window), stored)
    assert np.array_equal(seen, render(grey_image(stored, 12, **window), stored))


def test_a_voi_lut_of_no_bits_is_read_by_its_entries():
    stored = body()
    items = [lut_item(0, bits, list(range(4096))) for bits in (0, 12)]
    none, twelve = (render(grey_image(stored, 12, VOILUTSequence=[item]), stored) for item in items)
    assert np.array_equal(none, twelve)


def test_a_window_with_decimal_commas_is_read():
    stored = body()
    ds = grey_image(stored, 12)
    for keyword, value in (("WindowCenter", b"2000,5 "), ("WindowWidth", b"3000,0 ")):
        ds._dict[Tag(keyword)] = RawDataElement(Tag(keyword), "DS", len(value), value, 0, False, True)
    assert np.array_equal(render(ds, stored), render(grey_image(stored, 12, WindowCenter="2000.5", WindowWidth="3000"), stored))


@pytest.mark.parametrize(
    "window",
    [
        {"WindowCenter": "128", "WindowWidth": "256"},
        {"WindowCenter": "2048", "WindowWidth": "1"},
        {"WindowCenter": "40", "WindowWidth": "10"},
        {"WindowCenter": "2000", "WindowWidth": "60"},
        {"WindowCenter": ["128", "40"], "WindowWidth": ["256", "10"]},
        {"WindowCenter": "600", "WindowWidth": "1000"},
    ],
    ids=str,
)
def test_windows_that_clip_nearly_everything_give_way_to_percentiles(window):
    stored = body()
    seen, greys = rendering.render(grey_image(stored, 12, **window), stored)
    assert np.array_equal(seen, render(grey_image(stored, 12), stored))
    assert len(greys.disbelieved) == (2 if isinstance(window["WindowCenter"], list) else 1)


def test_a_good_window_after_bad_ones_is_taken():
    stored = body()
    windows = {"WindowCenter": ["128", "2048"], "WindowWidth": ["256", "4096"]}
    seen, greys = rendering.render(grey_image(stored, 12, **windows), stored)
    assert np.array_equal(seen, render(grey_image(stored, 12, WindowCenter="2048", WindowWidth="4096"), stored))
    assert greys.window == (2048, 4096)


def test_windows_without_a_partner_are_passed_over():
    stored = body()
    uneven = grey_image(stored, 12, WindowCenter=["2048", "1000"], WindowWidth="4096")
    assert rendering.render(uneven, stored)[1].window == (2048, 4096)


@pytest.mark.parametrize(("said", "held"), [(16, 12), (14, 10), (16, 8), (12, 12), (8, 12)])
def test_a_voi_lut_is_as_bright_as_its_entries_whatever_its_descriptor_claims(said, held):
    stored = body()
    entries = [round(entry * (2**held - 1) / 4095) for entry in range(4096)]
    seen = render(grey_image(stored, 12, VOILUTSequence=[lut_item(0, said, entries)]), stored)
    np.testing.assert_allclose(seen, stored / 4095, atol=1 / (2**held - 1))


def test_a_dark_voi_lut_of_its_full_depth_stays_dark():
    stored = body()
    entries = [round(entry * 0.7 * 65535 / 4095) for entry in range(4096)]
    seen = render(grey_image(stored, 12, VOILUTSequence=[lut_item(0, 16, entries)]), stored)
    np.testing.assert_allclose(seen, 0.7 * stored / 4095, atol=1e-4)


SHUTTERS = {
    "rectangular": {
        **{"ShutterShape": "RECTANGULAR", "ShutterLeftVerticalEdge": 21, "ShutterRightVerticalEdge": 220},
        **{"ShutterUpperHorizontalEdge": 11, "ShutterLowerHorizontalEdge": 190},
    },
    "circular": {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [100, 120], "RadiusOfCircularShutter": 80},
    "polygonal": {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [11, 21, 11, 220, 190, 220, 190, 21]},
}


@pytest.mark.parametrize("shape", SHUTTERS)
def test_what_lies_outside_the_shutter_is_hidden(shape):
    stored = body()
    stored[:10] = 4095
    seen, greys = rendering.render(grey_image(stored, 12, **SHUTTERS[shape]), stored)
    hidden = np.isnan(seen)
    assert greys.shutter
    assert hidden[0].all()
    assert not hidden[100, 60:180].any()
    if shape == "circular":
        assert hidden.mean() == pytest.approx(1 - np.pi * 80**2 / stored.size, abs=0.01)
    else:
        assert np.array_equal(np.flatnonzero(~hidden.all(axis=1)), np.arange(10, 190))
        assert np.array_equal(np.flatnonzero(~hidden.all(axis=0)), np.arange(20, 220))


@pytest.mark.parametrize("attributes", [{"ShutterShape": "RECTANGULAR"}, {"ShutterShape": "BITMAP"}, {"ShutterShape": "ROUND"}])
def test_a_shutter_without_measures_hides_nothing(attributes):
    stored = body()
    seen, greys = rendering.render(grey_image(stored, 12, **attributes), stored)
    assert not np.isnan(seen).any()
    assert not greys.shutter


@pytest.mark.parametrize(("first", "last"), [(0, 4095), (400, 2000), (2500, 65535)])
def test_padding_that_would_make_holes_in_the_patient_is_not_believed(first, last):
    stored = body()
    seen = render(grey_image(stored, 12, PixelPaddingValue=first, PixelPaddingRangeLimit=last), stored)
    assert not np.isnan(seen).any()


def test_the_reason_names_the_window_where_nothing_helps():
    stored = np.full((200, 240), 700, np.uint16)
    stored[:, ::2] = 701
    with pytest.raises(Rejected) as caught:
        prepare_dataset(grey_image(stored, 12, WindowCenter="128", WindowWidth="256"))
    assert any("window of centre 128 and width 256" in reason for reason in caught.value.reasons)


@pytest.mark.parametrize("slope", ["1e-12", "1e12"])
def test_values_of_any_size_are_spread_where_no_window_helps(slope):
    """A window in stored values, and a slope that makes them tiny or huge."""
    stored = ramp().astype(np.uint16) * 16
    expected = render(grey_image(stored, 12), stored)
    ds = grey_image(stored, 12, RescaleSlope=slope, RescaleIntercept="0", WindowCenter="2048", WindowWidth="4096")
    pixels = render(ds, stored)
    assert np.abs(pixels - expected).max() < 1e-3
