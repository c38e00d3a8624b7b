"""The overlay: heat on the right side and only in the lungs, whatever way the source lies, and an honest header.

Over 300 lines: one overlay, looked at from all sides.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from io import BytesIO

import cv2
import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from cxr_node.compose import compose_results, draw_overlay, overlay, pixel_aspect, shrink_for_overlay
from cxr_node.prepare.radiograph import prepare_dataset
from cxr_node.records import LABELS, Geometry, Model, Radiograph, ResultKind
from cxr_node.settings import OverlaySettings
from tests.compose_inputs import (
    KINDS_OF_PIXELS,
    MARK,
    NOW,
    ORIENTATIONS,
    PROBABILITIES,
    SIDE,
    findings,
    heat_at,
    lungs,
    lying,
    place_of,
    radiograph,
    source,
    upright_chest,
)

COLOURED = 40
"""Difference between a pixel's strongest and weakest channel from which it is heat, not the pale lung outline on grey."""
WAYS = [
    pytest.param({"transposed": t, "down": d, "across": a}, id=f"transposed={t:d} down={d:d} across={a:d}")
    for t, d, a in itertools.product((False, True), repeat=3)
]


def picture_of(overlay):
    """The radiograph's part of an overlay: between header and panel, whose heights are shares of the width."""
    height, width = overlay.shape[:2]
    return overlay[round(0.046 * width) : height - round(0.205 * width)].astype(int)


def colourfulness(picture):
    return picture.max(axis=2) - picture.min(axis=2)


def warmth(picture):
    """Red over blue: strong heat is golden, the outline of the lungs pale blue, the rest grey."""
    return picture[..., 0] - picture[..., 2]


def upright_again(picture, *, transposed=False, down=False, across=False):
    picture = picture.transpose(1, 0, 2) if transposed else picture
    picture = picture[::-1] if down else picture
    return picture[:, ::-1] if across else picture


def overlay_object(ds=None, settings=OverlaySettings(), **changes):  # noqa: B008 - frozen
    ds = source() if ds is None else ds
    item, *_ = compose_results(ds, radiograph(), findings(**changes), overlay=settings, now=NOW, kinds=[ResultKind.OVERLAY])
    return pydicom.dcmread(BytesIO(item.content))


@pytest.mark.parametrize("way", WAYS)
def test_heat_lies_over_the_mark_whatever_way_the_source_lies(way):
    picture = upright_again(picture_of(draw_overlay(radiograph(**way), findings(), 900)), **way)
    rows, columns = np.nonzero(warmth(picture) > 30)
    height, width = picture.shape[:2]
    assert rows.mean() / height == pytest.approx(MARK[0] / SIDE, abs=0.02)
    assert columns.mean() / width == pytest.approx(MARK[1] / SIDE, abs=0.02)


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids="".join)
@pytest.mark.parametrize(("shape", "photometric", "attributes"), KINDS_OF_PIXELS.values(), ids=KINDS_OF_PIXELS)
def test_the_picture_shows_the_source_s_own_pixels_with_heat_on_the_mark(orientation, shape, photometric, attributes):
    """From stored pixels to the object and back: where it is dark, where it is warm, and how high and wide it is."""
    ds, rad, dark = lying(orientation, shape, photometric, **attributes)
    (item,) = compose_results(ds, rad, findings(), kinds=[ResultKind.OVERLAY], now=NOW)
    picture = picture_of(pydicom.dcmread(BytesIO(item.content)).pixel_array)
    height, width = picture.shape[:2]
    assert height / width == pytest.approx(shape[0] * pixel_aspect(ds) / shape[1], rel=0.02)
    row, column = place_of(orientation, height, width)
    warm = warmth(picture) > 30
    assert row[warm].mean() == pytest.approx(MARK[0], abs=0.02 * SIDE)
    assert column[warm].mean() == pytest.approx(MARK[1], abs=0.02 * SIDE)
    grey = colourfulness(picture) == 0
    lung = cv2.resize(dark.astype(np.float32), (width, height))
    levels = picture[..., 0]
    assert levels[grey & (lung == 1)].max() < levels[grey & (lung == 0)].min()


def test_monochrome1_and_2_of_the_same_chest_make_the_same_overlay():
    stored = np.rint(upright_chest() * 4095).astype(np.uint16)

    def drawn(photometric_interpretation, pixels):
        ds = source(Rows=pixels.shape[0], Columns=pixels.shape[1], SamplesPerPixel=1, BitsAllocated=16, BitsStored=12)
        ds.HighBit, ds.PixelRepresentation, ds.PhotometricInterpretation = 11, 0, photometric_interpretation
        ds.PixelData = pixels.tobytes()
        return draw_overlay(prepare_dataset(ds), findings(), 512).astype(int)

    assert np.abs(drawn("MONOCHROME2", stored) - drawn("MONOCHROME1", 4095 - stored)).max() <= 1


def test_nothing_is_coloured_outside_the_lungs():
    everywhere = findings(heatmap=np.ones((SIDE, SIDE), np.float32))
    picture = picture_of(draw_overlay(radiograph(), everywhere, 900))
    inside = cv2.resize(lungs().astype(np.float32), picture.shape[1::-1])
    coloured = colourfulness(picture) > COLOURED
    assert coloured[inside > 0.95].mean() > 0.95
    away_from_the_outline = cv2.dilate((inside > 0).astype(np.uint8), np.ones((9, 9), np.uint8)) == 0
    assert not coloured[away_from_the_outline].any()
    assert (colourfulness(picture)[away_from_the_outline] == 0).all()


def test_colour_grows_with_heat():
    shades = []
    for heat in (0.0, 0.1, 0.3, 0.5, 0.75, 1.0):
        even = findings(heatmap=np.full((SIDE, SIDE), heat, np.float32) * lungs())
        picture = picture_of(draw_overlay(radiograph(), even, 600))
        middle = picture[round(picture.shape[0] * 120 / SIDE), round(picture.shape[1] * 70 / SIDE)]
        shades.append(middle)
    away_from_grey = [float(np.linalg.norm(shade - shades[0])) for shade in shades]
    assert colourfulness(shades[0][None, None])[0, 0] == 0
    assert away_from_grey == sorted(away_from_grey)
    assert away_from_grey[1] < 12 < away_from_grey[-1]


SIGHT = {
    "ordinary": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "no colours": [[0.2126, 0.7152, 0.0722]] * 3,
}
"""What becomes of linear RGB in the eye (Machado, Oliveira and Fernandes 2009, severity 1; luminance of Rec. 709)."""


def as_seen(colours, matrix):
    """uint8 (N, 3) of sRGB as CIELAB (N, 3) of what the eye makes of it."""
    encoded = colours / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.asarray(matrix).T, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return cv2.cvtColor(encoded.astype(np.float32)[None], cv2.COLOR_RGB2LAB)[0]


def shades_seen(sight, grey):
    """Heat 0, 1/4, 1/2, 3/4 and 1 over an even grey, as CIELAB of what that eye sees."""
    shades = []
    for heat in (0.0, 0.25, 0.5, 0.75, 1.0):
        even = findings(heatmap=np.full((SIDE, SIDE), heat, np.float32) * lungs())
        picture = picture_of(draw_overlay(radiograph(np.full((640, 512), grey, np.float32)), even, 600))
        shades.append(picture[round(picture.shape[0] * 120 / SIDE), round(picture.shape[1] * 70 / SIDE)])
    return as_seen(np.array(shades, np.float32), SIGHT[sight])


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("grey", [0.15, 0.3])
def test_strong_heat_is_told_from_weak_and_from_none_by_every_eye(sight, grey):
    none, *seen = shades_seen(sight, grey)
    assert np.linalg.norm(seen[-1] - none) > 25  # ten times what is just noticed
    assert np.linalg.norm(seen[-1] - seen[1]) > 15
    assert (np.diff([shade[0] for shade in seen]) > 0).all()  # lighter where it is stronger, on a grey printer too


@pytest.mark.parametrize("sight", SIGHT)
def test_the_colours_of_a_rainbow_would_not_be(sight, monkeypatch):
    """The negative control."""
    monkeypatch.setattr(overlay, "_COLOURS", cv2.COLORMAP_JET)
    _, *seen = shades_seen(sight, 0.15)
    assert not (np.diff([shade[0] for shade in seen]) > 0).all()


def test_the_anatomy_stays_visible_under_the_strongest_heat():
    stripes = upright_chest()
    stripes[::40] += 0.2
    hot = findings(heatmap=lungs().astype(np.float32))
    picture = picture_of(draw_overlay(radiograph(stripes), hot, 850))
    column = picture[:, round(picture.shape[1] * 70 / SIDE)].sum(axis=1)[picture.shape[0] // 3 : picture.shape[0] // 2]
    assert column.max() - column.min() > 30


@pytest.mark.parametrize("max_side_px", [256, 1024, 1280, 2000])
@pytest.mark.parametrize("shape", [(3056, 2544), (2000, 2800), (300, 300), (1000, 301)])
def test_the_longest_side_is_as_asked(shape, max_side_px):
    drawn = draw_overlay(radiograph(upright_chest(*shape)), findings(), max_side_px)
    expected = min(max_side_px, max(1024, *shape))
    assert expected - 2 <= max(drawn.shape[:2]) <= expected
    assert drawn.dtype == np.uint8
    picture = picture_of(drawn)
    assert picture.shape[0] / picture.shape[1] == pytest.approx(shape[0] / shape[1], rel=0.02)


@pytest.mark.parametrize("aspect", [0.5, 1.0, 1.6])
def test_pixels_that_are_not_square_are_drawn_square(aspect):
    picture = picture_of(draw_overlay(radiograph(), findings(), 800, pixel_aspect=aspect))
    assert picture.shape[0] / picture.shape[1] == pytest.approx(640 * aspect / 512, rel=0.01)


@pytest.mark.parametrize(
    ("attributes", "aspect"),
    [
        ({}, 1.0),
        ({"PixelSpacing": [0.2, 0.1]}, 2.0),
        ({"ImagerPixelSpacing": [0.1, 0.2]}, 0.5),
        ({"PixelSpacing": [0.15, 0.15], "PixelAspectRatio": [1, 2]}, 1.0),
        ({"PixelAspectRatio": [4, 3]}, 4 / 3),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.3, 0.2]}, 1.5),
        ({"PixelSpacing": [0.1, 50]}, 1.0),
        ({"PixelSpacing": ""}, 1.0),
        ({"PixelAspectRatio": 1}, 1.0),
    ],
)
def test_pixel_aspect_is_height_by_width(attributes, aspect):
    assert pixel_aspect(source(**attributes)) == pytest.approx(aspect)


def test_the_object_is_drawn_with_the_source_s_pixel_aspect():
    square, tall = overlay_object(), overlay_object(source(PixelSpacing=[0.4, 0.2]))
    assert tall.Rows / tall.Columns > 1.5 * square.Rows / square.Columns


def test_padding_is_black():
    padded = upright_chest()
    padded[:, :60] = np.nan
    picture = picture_of(draw_overlay(Radiograph(padded, np.zeros((SIDE, SIDE), np.uint8), Geometry(640, 512)), findings(), 850))
    assert (picture[:, : picture.shape[1] * 50 // 512] == 0).all()
    assert picture[:, picture.shape[1] * 250 // 512].mean() > 100


@pytest.mark.parametrize(("shape", "aspect"), [((1281, 640), 1.0), ((2000, 1700), 1.0), ((1700, 2000), 2.0), ((640, 1500), 0.5)])
def test_fewer_pixels_draw_the_same_picture(shape, aspect):
    whole = radiograph(upright_chest(*shape))
    fewer = replace(whole, pixels=shrink_for_overlay(whole.pixels, 600, aspect))
    assert fewer.pixels.nbytes < whole.pixels.nbytes / 3
    drawn = [draw_overlay(one, findings(), 600, pixel_aspect=aspect) for one in (whole, fewer)]
    assert np.array_equal(*drawn)


def test_the_same_input_draws_the_same_picture():
    assert np.array_equal(draw_overlay(radiograph(), findings(), 700), draw_overlay(radiograph(), findings(), 700))


def ink(crop):
    """What is drawn in a crop, without its margins."""
    rows, columns = np.nonzero(crop.max(axis=2) > 128)
    return crop[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def test_side_letters_stand_where_the_sides_lie():
    def letters(**way):
        drawn = draw_overlay(radiograph(**way), findings(), 1200)
        header = drawn[: round(0.046 * drawn.shape[1])]
        tenth = drawn.shape[1] // 10
        return ink(header[:, :tenth]), ink(header[:, -tenth:])

    left, right = letters()
    left_of_flipped, right_of_flipped = letters(across=True)
    assert not np.array_equal(left, right)
    assert np.array_equal(left, right_of_flipped)
    assert np.array_equal(right, left_of_flipped)
    assert np.array_equal(left, letters(down=True)[0])


def test_a_source_on_its_side_names_top_and_bottom():
    def inked_columns(transposed):
        drawn = draw_overlay(radiograph(transposed=transposed), findings(), 1200)
        header = drawn[: round(0.046 * drawn.shape[1]), : drawn.shape[1] // 4]
        return ink(header).shape[1] / drawn.shape[1]

    assert inked_columns(True) > 3 * inked_columns(False)


def heights_of_letters(picture):
    """Of the connected pieces of ink that are as high and as wide as letters can be, in pixels."""
    _, _, pieces, _ = cv2.connectedComponentsWithStats((picture.max(axis=2) > 128).astype(np.uint8))
    return sorted(height for _, _, width, height, _ in pieces[1:] if 0.2 < width / height < 1.5 and height > 2)


@pytest.mark.parametrize("shape", [(3056, 2544), (2544, 3056), (1000, 1000)])
def test_letters_can_be_read_on_a_monitor_of_two_thousand_lines(shape):
    """As delivered by default it is shown pixel by pixel or larger; the result itself is read from afar."""
    drawn = draw_overlay(radiograph(upright_chest(*shape)), findings(), OverlaySettings().max_side_px)
    width = drawn.shape[1]
    panel = drawn[-round(0.205 * width) :]
    letters = heights_of_letters(panel)
    assert np.percentile(letters, 10) >= 7
    assert np.percentile(heights_of_letters(panel[: round(0.06 * width), : round(0.63 * width)]), 50) >= 18


def test_a_thumbnail_shows_where_the_heat_is_and_which_class_is_likeliest():
    drawn = draw_overlay(radiograph(), findings(), OverlaySettings().max_side_px)
    scale = 128 / max(drawn.shape[:2])
    thumbnail = cv2.resize(drawn, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    picture = picture_of(thumbnail)
    rows, columns = np.nonzero(warmth(picture) > 40)
    assert rows.size > 20
    assert rows.mean() / picture.shape[0] == pytest.approx(MARK[0] / SIDE, abs=0.04)
    assert columns.mean() / picture.shape[1] == pytest.approx(MARK[1] / SIDE, abs=0.04)
    width = thumbnail.shape[1]
    panel = thumbnail[-round(0.205 * width) :].astype(int)
    blue = (panel[..., 2] - panel[..., 0])[:, round(0.27 * width) : round(0.53 * width)]
    rows_of_bars = [round((0.081 + 0.03 * number) * width) for number in range(4)]
    lengths = [(blue[row - 1 : row + 1].max(axis=0) > 40).sum() for row in rows_of_bars]
    named = LABELS.index("bacterial_pneumonia")
    assert [length > 0 for length in lengths] == [number == named for number in range(4)]
    assert lengths[named] / blue.shape[1] == pytest.approx(PROBABILITIES["bacterial_pneumonia"], abs=0.1)


@pytest.mark.parametrize("label", LABELS)
def test_each_class_has_a_panel_of_its_own(label):
    drawn = draw_overlay(radiograph(), findings(label=label), 800)
    others = [draw_overlay(radiograph(), findings(label=other), 800) for other in LABELS if other != label]
    assert all(not np.array_equal(drawn[-120:], other[-120:]) for other in others)


def test_bars_are_as_long_as_the_probabilities():
    drawn = draw_overlay(radiograph(), findings(), 1280)
    width = drawn.shape[1]
    top = drawn.shape[0] - round(0.205 * width)
    left, right = round(0.268 * width), round(0.53 * width)
    for row, label in enumerate(LABELS):
        line = drawn[top + round((0.081 + 0.03 * row) * width), left : right + 1].astype(int)
        filled = (line.max(axis=1) > 100).mean()
        assert filled == pytest.approx(PROBABILITIES[label], abs=0.01)


@pytest.mark.parametrize("max_side_px", [400, 640, 1024])
def test_no_text_runs_over_the_edge_or_into_another(max_side_px):
    """The longest texts leave the panel's margins and the gutter between its columns empty."""
    certain = dict.fromkeys(LABELS, 0.0) | {"covid19_pneumonia": 1.0}
    said = findings(label="covid19_pneumonia", probabilities=certain, model=Model("A network of a long name", "10.20.30-rc.4"))
    drawn = draw_overlay(radiograph(), said, max_side_px)
    width = drawn.shape[1]
    panel = drawn[drawn.shape[0] - round(0.205 * width) + 2 :].max(axis=(0, 2))
    assert not panel[-width // 70 :].any()
    assert not panel[round(0.64 * width) : round(0.67 * width)].any()
    title = drawn[drawn.shape[0] - round(0.205 * width) + 2 :][: round(0.055 * width)].max(axis=(0, 2))
    assert not title[round(0.493 * width) : round(0.497 * width)].any()


def test_an_indeterminate_result_names_no_class():
    sure, unsure = (draw_overlay(radiograph(), findings(indeterminate_below=below), 800) for below in (0.0, 0.9))
    width = sure.shape[1]
    top = sure.shape[0] - round(0.205 * width)
    assert not np.array_equal(sure[top:], unsure[top:])
    percent = unsure[top + 2 : top + round(0.06 * width), round(0.5 * width) : round(0.65 * width)]
    assert not percent.any()
    bars = unsure[top + round(0.07 * width) :, round(0.268 * width) : round(0.53 * width)].astype(int)
    assert (bars.max(axis=2) == bars.min(axis=2)).all()  # none of them is the coloured one of the class that is named


def test_an_indeterminate_result_says_why():
    drawn = [draw_overlay(radiograph(), findings(doubt=reason), 800) for reason in ("other abnormality suspected", "unlike")]
    width = drawn[0].shape[1]
    top = drawn[0].shape[0] - round(0.205 * width)
    line = slice(top + round(0.054 * width), top + round(0.07 * width)), slice(0, round(0.26 * width))
    assert not np.array_equal(drawn[0][line], drawn[1][line])
    assert drawn[0][line].any()


def test_side_by_side_shows_the_radiograph_untouched_beside_the_overlay():
    drawn = draw_overlay(radiograph(), findings(), 1000, side_by_side=True)
    assert max(drawn.shape[:2]) <= 1000
    assert drawn.shape[1] % 2 == 0
    width = drawn.shape[1] // 2
    plain, overlay = drawn[:, :width], drawn[:, width:]
    left, right = picture_of(plain), picture_of(overlay)
    assert (colourfulness(left) == 0).all()
    assert colourfulness(right).max() > COLOURED
    away_from_the_lungs = np.s_[: left.shape[0] // 10]
    assert np.array_equal(left[away_from_the_lungs], right[away_from_the_lungs])
    assert plain[-round(0.2 * width) :].max() == 0
    assert overlay[-round(0.2 * width) :].max() == 255


@pytest.mark.parametrize("compression", ["raw", "rle", "jpeg-ls", "jpeg2000"])
def test_every_compression_keeps_the_picture(compression):
    given = OverlaySettings(max_side_px=400, compression=compression)
    ds = overlay_object(settings=given)
    assert ds.file_meta.TransferSyntaxUID == given.transfer_syntax_uid
    assert np.array_equal(ds.pixel_array, draw_overlay(radiograph(), findings(), 400))
    assert "LossyImageCompression" not in ds
    assert (len(ds.PixelData) < ds.Rows * ds.Columns * 3) == (compression != "raw")


def test_says_what_the_standard_wants_of_a_derived_image():
    ds = overlay_object(source(PatientOrientation=["R", "F"]))
    assert ds.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage
    assert ds.ImageType == ["DERIVED", "SECONDARY"]
    assert ds.BurnedInAnnotation == "YES"
    assert ds.ConversionType
    assert ds.DerivationDescription
    assert ds.Modality == "DX"
    assert ds.BodyPartExamined == "CHEST"
    assert ds.PatientOrientation == ["R", "F"]
    assert (ds.PhotometricInterpretation, ds.SamplesPerPixel, ds.PlanarConfiguration) == ("RGB", 3, 0)
    assert ds.pixel_array.shape == (ds.Rows, ds.Columns, 3)


def test_names_its_source():
    (item,) = overlay_object().SourceImageSequence
    assert item.ReferencedSOPInstanceUID == source().SOPInstanceUID
    assert item.ReferencedSOPClassUID == source().SOPClassUID
    purpose = item.PurposeOfReferenceCodeSequence[0]
    assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("121322", "DCM")


def test_holds_the_picture_that_was_drawn():
    assert np.array_equal(overlay_object().pixel_array, draw_overlay(radiograph(), findings(), 1280))


@pytest.mark.parametrize("orientation", [None, "", "L", ["L", "F", "H"]])
def test_an_orientation_that_is_no_pair_is_left_empty(orientation):
    assert not overlay_object(source(PatientOrientation=orientation)).PatientOrientation


@pytest.mark.parametrize(
    ("attributes", "transfer_syntax", "flag"),
    [
        ({}, "1.2.840.10008.1.2.1", None),
        ({"LossyImageCompression": "00"}, "1.2.840.10008.1.2.1", "00"),
        ({"LossyImageCompression": "01"}, "1.2.840.10008.1.2.1", "01"),
        ({}, "1.2.840.10008.1.2.4.50", "01"),
        ({"LossyImageCompression": "00"}, "1.2.840.10008.1.2.4.51", "01"),
    ],
)
def test_lossy_compression_is_inherited(attributes, transfer_syntax, flag):
    given = source(**attributes)
    given.file_meta.TransferSyntaxUID = transfer_syntax
    assert overlay_object(given).get("LossyImageCompression") == flag


def test_ratio_and_method_come_along_with_losses():
    ds = overlay_object(
        source(LossyImageCompression="01", LossyImageCompressionRatio=10, LossyImageCompressionMethod="ISO_15444_1")
    )
    assert (ds.LossyImageCompressionRatio, ds.LossyImageCompressionMethod) == (10, "ISO_15444_1")


def test_a_source_without_file_meta_information_will_do():
    bare = Dataset()
    bare.update(source())
    assert "LossyImageCompression" not in overlay_object(bare)


def test_heat_at_the_left_lung_is_drawn_there():
    """The negative control of the side tests: the mark moves, and the colour with it."""
    picture = picture_of(draw_overlay(radiograph(), findings(heatmap=heat_at((100, 154))), 900))
    _, columns = np.nonzero(warmth(picture) > 30)
    assert columns.min() > picture.shape[1] / 2
