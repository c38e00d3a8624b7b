"""What decoders can read is read: boxes, fragments, offset tables, syntaxes wrongly named; what is missing is named."""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image
from pydicom.dataelem import RawDataElement
from pydicom.encaps import encapsulate, get_frame
from pydicom.tag import Tag
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLSLossless,
    RLELossless,
)

from cxr_node.errors import Rejected
from cxr_node.prepare.decode import decode_pixels
from tests.images import grey_image

STORED = (np.add.outer(np.arange(200) * 7, np.arange(256) * 3) % 4096).astype(np.uint16)
COMPRESSIONS = (RLELossless, JPEGLSLossless, JPEG2000Lossless)


def frame_of(syntax):
    return get_frame(grey_image(STORED, 12, syntax).PixelData, 0, number_of_frames=1)


def box(kind, content):
    return struct.pack(">I4s", 8 + len(content), kind) + content


def item(content):
    content += b"\0" * (len(content) % 2)
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(content)) + content


@pytest.mark.parametrize("table", [b"", struct.pack("<I", 0), struct.pack("<2I", 0, 5000), struct.pack("<I", 77777)], ids=len)
@pytest.mark.parametrize("syntax", COMPRESSIONS, ids=lambda uid: uid.keyword)
def test_a_frame_in_many_fragments_is_read_with_any_offset_table(syntax, table):
    ds = grey_image(STORED, 12, syntax)
    frame = frame_of(syntax)
    ds.PixelData = item(table) + b"".join(item(frame[start : start + 1000]) for start in range(0, len(frame), 1000))
    assert np.array_equal(decode_pixels(ds), STORED)


def test_an_extended_offset_table_makes_no_difference():
    ds = grey_image(STORED, 12, JPEGLSLossless)
    ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = struct.pack("<Q", 99), struct.pack("<Q", 10)
    assert np.array_equal(decode_pixels(ds), STORED)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.keyword)
def test_a_frame_without_an_offset_table_before_it_is_read(syntax):
    ds = grey_image(STORED, 12, syntax)
    ds.PixelData = item(frame_of(syntax))
    assert np.array_equal(decode_pixels(ds), STORED)


@pytest.mark.parametrize("long_length", [False, True])
def test_jpeg_2000_in_the_boxes_of_jp2_is_read(long_length):
    ds = grey_image(STORED, 12, JPEG2000Lossless)
    code = frame_of(JPEG2000Lossless)
    last = struct.pack(">I4sQ", 1, b"jp2c", 16 + len(code)) + code if long_length else box(b"jp2c", code)
    head = box(b"ihdr", struct.pack(">IIHBBBB", *STORED.shape, 1, 11, 7, 0, 0))
    ds.PixelData = encapsulate([box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ") + box(b"jp2h", head) + last])
    assert np.array_equal(decode_pixels(ds), STORED)


def test_boxes_without_a_codestream_are_damaged():
    ds = grey_image(STORED, 12, JPEG2000Lossless)
    ds.PixelData = encapsulate([box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")])
    with pytest.raises(Rejected, match="damaged"):
        decode_pixels(ds)


@pytest.mark.parametrize("declared", [JPEGBaseline8Bit, JPEGLossless])
@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.keyword)
def test_a_codestream_under_another_syntax_s_name_is_read(syntax, declared):
    ds = grey_image(STORED, 12, syntax)
    ds.file_meta.TransferSyntaxUID = declared
    assert np.array_equal(decode_pixels(ds), STORED)


def test_a_progressive_jpeg_of_a_retired_syntax_is_read():
    eight = (STORED // 16).astype(np.uint8)
    written = io.BytesIO()
    Image.fromarray(eight).save(written, "JPEG", progressive=True, quality=95)
    ds = grey_image(eight, 8)
    ds.PixelData = encapsulate([written.getvalue()])
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.55"
    assert np.abs(decode_pixels(ds).astype(int) - eight).max() <= 4


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGExtended12Bit], ids=lambda uid: uid.keyword)
def test_a_jpeg_of_8_bits_is_read_into_words_of_16(syntax):
    eight = (STORED // 16).astype(np.uint8)
    written = io.BytesIO()
    Image.fromarray(eight).save(written, "JPEG", quality=95)
    ds = grey_image(eight.astype(np.uint16), 8)
    ds.PixelData = encapsulate([written.getvalue()])
    ds.file_meta.TransferSyntaxUID = syntax
    decoded = decode_pixels(ds)
    assert decoded.dtype == np.uint16
    assert np.abs(decoded.astype(int) - eight).max() <= 4


@pytest.mark.parametrize(
    ("gaps", "order", "unused"),
    [((6, 0), (0, 1), 0), ((0, 8), (0, 1), 0), ((0, 0), (1, 0), 0), ((0, 0), (0, 1), 2**32 - 1)],
    ids=["a gap after the header", "a gap between", "the second first", "unused offsets filled"],
)
def test_segments_of_rle_are_read_wherever_they_lie(gaps, order, unused):
    ds = grey_image(STORED, 12, RLELossless)
    frame = frame_of(RLELossless)
    _, first, second = struct.unpack("<3I", frame[:12])
    segments = frame[first:second], frame[second:]
    offsets, body = [0, 0], b""
    for segment, gap in zip(order, gaps, strict=True):
        body += b"\x80" * gap  # which stands for nothing (PS3.5 G.3.1)
        offsets[segment] = 64 + len(body)
        body += segments[segment]
    ds.PixelData = encapsulate([struct.pack("<16I", 2, *offsets, *[unused] * 13) + body])
    assert np.array_equal(decode_pixels(ds), STORED)


@pytest.mark.parametrize("offsets", [(64, 2**32 - 1), (10, 5000), (64, 64)], ids=str)
def test_segments_of_rle_that_lie_nowhere_are_damaged(offsets):
    ds = grey_image(STORED, 12, RLELossless)
    ds.PixelData = encapsulate([struct.pack("<3I", 2, *offsets) + frame_of(RLELossless)[12:]])
    with pytest.raises(Rejected, match="damaged"):
        decode_pixels(ds)


def test_an_uncompressed_frame_that_is_encapsulated_is_read():
    ds = grey_image(STORED, 12)
    ds.PixelData = encapsulate([STORED.tobytes()])
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.98"
    assert np.array_equal(decode_pixels(ds), STORED)


@pytest.mark.parametrize(
    "keyword",
    ["Rows", "Columns", "PixelRepresentation", "BitsStored", "BitsAllocated", "PhotometricInterpretation", "SamplesPerPixel"],
)
def test_what_is_missing_is_named(keyword):
    ds = grey_image(STORED, 12)
    del ds[keyword]
    with pytest.raises(Rejected, match=keyword):
        decode_pixels(ds)


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of the values
@pytest.mark.parametrize("written", ["1", "1 ", "0", "", "1\\1", "abc"])
def test_a_number_of_frames_that_is_not_several_is_one(written):
    ds = grey_image(STORED, 12)
    tag = Tag("NumberOfFrames")
    ds._dict[tag] = RawDataElement(tag, "IS", len(written), written.encode(), 0, False, True)
    assert np.array_equal(decode_pixels(ds), STORED)


@pytest.mark.parametrize("written", ["monochrome2", "MONOCHROME 2", "MONOCHROME_2"])
def test_the_photometric_interpretation_is_read_however_it_is_written(written):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of lower case
        ds = grey_image(STORED, 12, PhotometricInterpretation=written)
    assert np.array_equal(decode_pixels(ds), STORED)
    assert ds.PhotometricInterpretation == "MONOCHROME2"


@pytest.mark.parametrize("high_bit", [11, 15])
def test_values_are_read_where_they_lie_in_their_words(high_bit):
    shift = high_bit - 11
    assert np.array_equal(decode_pixels(grey_image(STORED << shift, 12, HighBit=high_bit)), STORED)


def test_a_high_bit_that_the_values_contradict_is_not_believed():
    assert np.array_equal(decode_pixels(grey_image(STORED, 12, HighBit=15)), STORED)


def with_palette(red, green, blue):
    """An image of 8 bits whose values are looked up in these, uint16 (256,) each."""
    ds = grey_image((STORED // 16).astype(np.uint8), 8, PhotometricInterpretation="PALETTE COLOR")
    for colour, entries in (("Red", red), ("Green", green), ("Blue", blue)):
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(ds, f"{colour}PaletteColorLookupTableData", entries.astype("<u2").tobytes())
    return ds


def test_a_palette_of_greys_is_read_as_grey():
    ramp = np.arange(256, dtype=np.uint16)[::-1] * 257
    assert np.array_equal(decode_pixels(with_palette(ramp, ramp, ramp)) // 257, 255 - STORED // 16)


def test_a_palette_of_colours_is_turned_away():
    ramp = np.arange(256, dtype=np.uint16) * 257
    with pytest.raises(Rejected, match="in colour"):
        decode_pixels(with_palette(ramp, ramp, ramp[::-1]))


@pytest.mark.parametrize("keyword", ["Rows", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"])
def test_of_several_values_the_first_counts(keyword):
    ds = grey_image(STORED, 12)
    value = ds[keyword].value
    setattr(ds, keyword, [value, 7])
    assert np.array_equal(decode_pixels(ds), STORED)


SMOOTH = (np.hypot(*np.mgrid[-100:100, -128:128]) * 22).astype(np.uint16)
"""0 to 3581, nowhere with a jump."""


@pytest.mark.parametrize("bits", [8, 10, 11])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless], ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("least", [0, -1800])
def test_values_that_need_more_bits_than_bits_stored_says_are_read_as_they_are(least, syntax, bits):
    values = SMOOTH.astype(np.int16) + least if least else SMOOTH
    ds = grey_image(values.astype(np.int16 if least else np.uint16), 13, syntax)
    ds.BitsStored, ds.HighBit = bits, bits - 1
    assert np.array_equal(decode_pixels(ds), values)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless], ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("beyond", ["everywhere", "a circle", "noise"])
def test_what_lies_in_the_unused_bits_beside_the_values_is_not_seen(beyond, syntax):
    where = {"everywhere": SMOOTH >= 0, "a circle": SMOOTH < 900, "noise": np.random.default_rng(2).random(SMOOTH.shape) < 0.5}
    ds = grey_image(SMOOTH | np.where(where[beyond], 0x3000, 0).astype(np.uint16), 16, syntax)
    ds.BitsStored, ds.HighBit = 12, 11
    assert np.array_equal(decode_pixels(ds), SMOOTH)
