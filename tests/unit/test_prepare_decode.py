"""Stored values come out as they went in, and what can't or mustn't be decoded is turned away with a reason.

Over 300 lines: the table of forms is long.
"""

from __future__ import annotations

import base64
import io
import subprocess

import cv2
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate, get_frame
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import (
    HTJ2K,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from cxr_node.errors import Rejected
from cxr_node.prepare import decode, image_file
from cxr_node.prepare.codestream import read_codestream
from cxr_node.prepare.decode import decode_pixels, is_dicom, read_dataset
from cxr_node.prepare.image_file import read_image_file
from tests.images import grey_image, ramp, save

# 64 rows and 48 columns of 16 bits, column * 40 + row * 30, encoded reversibly by OpenJPH 0.26.
HTJ2K_RAMP = """
/0//UQApQAAAAAAwAAAAQAAAAAAAAAAAAAAAMAAAAEAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCI
kJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAREAAf+TwAArAC0Am/d19ePsAsM0AMAAE0AA
E4Db7QCLdABIROIAo1QAwAAVUAAFUNpq06btl+ILdQAiihDxwCEAjLYAwAAWhAABaABsbGxsbGxsbN4KenpxgngAECEgICAg/vwA
GPYxgey5AMAAFtwAAW0AMplMJpPJZDKZTCaTyWTz/gp6enp6enpxAn0AhgaDwWAwGAwGg+H/coIQHv2IQHv2IQHsvwDAAC62AAF1
QI7jOI7jOI7jOI7jOI7jOI7jOI7jOI7jOP1/+np6enp6enp6enp6enp6cIJ1AbrWWmuttdZaa6211lprrf9/fAAAe/YAAe/YAAe/
YAAe/YAAe/YAAey7Af/Z
"""


def stored_values(dtype, bits):
    """(61, 43): an odd number of pixels; both ends of the range are in it."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if np.dtype(dtype).kind == "i" else (0, 2**bits - 1)
    values = np.random.default_rng(bits).integers(low, high, (61, 43), endpoint=True)
    values[0, :2] = low, high
    return values.astype(dtype)


def rejection(ds) -> str:
    with pytest.raises(Rejected) as caught:
        decode_pixels(ds)
    return str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [(np.uint8, 8), (np.uint16, 10), (np.uint16, 12), (np.uint16, 15), (np.uint16, 16), (np.int16, 12), (np.int16, 16)],
)
@pytest.mark.parametrize(
    "syntax",
    [
        *(ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian),
        *(RLELossless, JPEGLSLossless, JPEG2000Lossless),
    ],
    ids=lambda uid: uid.keyword,
)
def test_stored_values_come_back(syntax, dtype, bits, tmp_path):
    values = stored_values(dtype, bits)
    ds = read_dataset(save(grey_image(values, bits, syntax), tmp_path / "image.dcm"))
    decoded = decode_pixels(ds)
    assert np.array_equal(decoded, values)
    assert decoded.dtype == values.dtype
    assert decoded.dtype.isnative


@pytest.mark.parametrize("syntax", [HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K])
def test_htj2k_comes_back(syntax):
    row, column = np.mgrid[0:64, 0:48]
    ds = grey_image((column * 40 + row * 30).astype(np.uint16))
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate([base64.b64decode(HTJ2K_RAMP)])
    assert np.array_equal(decode_pixels(ds), column * 40 + row * 30)


@pytest.mark.peer
@pytest.mark.parametrize(
    ("option", "dtype", "bits", "tolerance"),
    [
        ("+eb", np.uint8, 8, 12),
        ("+ee", np.uint16, 12, 80),
        ("+el", np.uint8, 8, 0),
        ("+el", np.uint16, 12, 0),
        ("+el", np.uint16, 16, 0),
        ("+e1", np.uint8, 8, 0),
        ("+e1", np.uint16, 12, 0),
        ("+e1", np.uint16, 16, 0),
    ],
)
def test_jpeg_of_dcmtk_comes_back(option, dtype, bits, tolerance, peer, tmp_path):
    values = (np.add.outer(np.arange(97), 2 * np.arange(81)) * (2**bits - 1) // 260).astype(dtype)
    path = save(grey_image(values, bits, StudyDate=""), tmp_path / "image.dcm")
    subprocess.run([peer("dcmcjpeg"), option, path, tmp_path / "jpeg.dcm"], check=True, capture_output=True)
    decoded = decode_pixels(read_dataset(tmp_path / "jpeg.dcm"))
    assert np.abs(decoded.astype(int) - values.astype(int)).max() <= tolerance


def test_values_high_in_their_word_are_moved_down():
    values = stored_values(np.uint16, 12)
    ds = grey_image((values << 4 | 0x5).astype(np.uint16), 12, HighBit=15)
    assert np.array_equal(decode_pixels(ds), values)


def test_signed_values_high_in_their_word_keep_their_sign():
    values = stored_values(np.int16, 12)
    ds = grey_image((values << 4).astype(np.int16), 12, HighBit=15)
    assert np.array_equal(decode_pixels(ds), values)


def test_an_overlay_in_the_unused_bits_is_not_seen():
    values = stored_values(np.uint16, 12)
    assert np.array_equal(decode_pixels(grey_image((values | 0x8000).astype(np.uint16), 12)), values)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian], ids=lambda uid: uid.keyword
)
def test_a_data_set_without_file_meta_information_is_read(syntax, tmp_path):
    values = stored_values(np.uint16, 12)
    complete = save(grey_image(values, 12, syntax, ImageType="ORIGINAL"), tmp_path / "complete.dcm")
    meta = io.BytesIO()
    write_file_meta_info(meta, dcmread(complete).file_meta)
    bare = tmp_path / "bare"
    bare.write_bytes(complete.read_bytes()[132 + meta.tell() :])

    ds = read_dataset(bare)

    assert is_dicom(bare)
    assert ds.file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(decode_pixels(ds), values)


@pytest.mark.parametrize(
    "content", [b"", b"hello, this is a letter and no radiograph", b"\x89PNG\r\n\x1a\n" + bytes(200), bytes(500)]
)
def test_what_is_no_dicom_is_turned_away(content, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert not is_dicom(path)
    with pytest.raises(Rejected, match="not a"):
        read_dataset(path)


def test_a_missing_file_is_no_rejection(tmp_path):
    assert not is_dicom(tmp_path / "none.dcm")
    with pytest.raises(FileNotFoundError):
        read_dataset(tmp_path / "none.dcm")


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"NumberOfFrames": "2"}, "several frames"),
        ({"Rows": 30_000, "Columns": 30_000}, "more than can be analysed"),
        ({"Rows": None}, "how large"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "palette"),
        ({"PhotometricInterpretation": "MONOCHROME"}, "black may be white"),
        ({"PhotometricInterpretation": "RGB"}, "black may be white"),
        ({"SamplesPerPixel": 3}, "contradict"),
        ({"SamplesPerPixel": 2}, "contradict"),
        ({"BitsAllocated": 64}, "number of bits"),
        ({"Columns": 4000}, "truncated"),
    ],
)
def test_headers_that_cannot_be_decoded_are_turned_away(attributes, reason):
    assert reason in rejection(grey_image(ramp(), **attributes))


def test_an_object_without_a_picture_is_turned_away():
    ds = grey_image(ramp())
    del ds.PixelData
    assert "no pixel data" in rejection(ds)


def test_every_reason_is_named():
    with pytest.raises(Rejected) as caught:
        decode_pixels(grey_image(ramp(), NumberOfFrames="3", BitsAllocated=64))
    assert len(caught.value.reasons) == 2


def test_an_unknown_compression_is_turned_away():
    ds = grey_image(ramp())
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
    assert "MPEG2" in rejection(ds)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_codestream_cut_short_is_turned_away(share, syntax):
    ds = grey_image(stored_values(np.uint16, 12), 12, syntax)
    frame = get_frame(ds.PixelData, 0, number_of_frames=1)
    ds.PixelData = encapsulate([frame[: int(share * len(frame))]])
    assert "truncated" in rejection(ds)


def test_uncompressed_pixels_cut_short_are_turned_away_for_that_reason():
    ds = grey_image(ramp(), 8)
    ds.PixelData = ds.PixelData[:-200]
    assert "truncated" in rejection(ds)


def test_rle_cut_short_is_turned_away():
    ds = grey_image(stored_values(np.uint16, 12), 12, RLELossless)
    frame = get_frame(ds.PixelData, 0, number_of_frames=1)
    ds.PixelData = encapsulate([frame[: len(frame) // 2]])
    assert "damaged" in rejection(ds)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.keyword)
def test_a_codestream_of_another_size_than_its_header_is_turned_away(syntax):
    ds = grey_image(ramp(64, 64), 8, syntax)
    ds.Rows = 63
    assert "differs from its header" in rejection(ds)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.keyword)
def test_padding_behind_a_codestream_is_no_damage(syntax):
    values = stored_values(np.uint16, 12)
    ds = grey_image(values, 12, syntax)
    frame = get_frame(ds.PixelData, 0, number_of_frames=1).rstrip(b"\0")
    for padding in (b"\0", b"\xff", b"\0\0\0"):
        ds.PixelData = encapsulate([frame + padding])
        assert np.array_equal(decode_pixels(ds), values)


def test_noise_in_place_of_a_codestream_is_turned_away():
    ds = grey_image(ramp(64, 64), 8, JPEGLSLossless)
    ds.PixelData = encapsulate([np.random.default_rng(0).bytes(2000)])
    assert "damaged" in rejection(ds)


def test_pixels_that_are_not_encapsulated_are_turned_away():
    ds = grey_image(ramp(64, 64))
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    assert "damaged" in rejection(ds)


def test_the_next_decoder_is_tried_where_the_first_fails(monkeypatch):
    values = stored_values(np.uint16, 12)
    ds = grey_image(values, 12, JPEGLSLossless)
    monkeypatch.setitem(decode._PLUGINS, JPEGLSLossless, ("pillow", "gdcm"))  # Pillow knows no JPEG-LS
    assert np.array_equal(decode_pixels(ds), values)


def test_a_deflated_data_set_that_swells_is_turned_away(tmp_path, monkeypatch):
    path = save(grey_image(np.zeros((2000, 2000), np.uint16), 12, DeflatedExplicitVRLittleEndian), tmp_path / "bomb.dcm")
    assert path.stat().st_size < 20_000
    read_dataset(path)
    monkeypatch.setattr(decode, "MAX_INFLATED_BYTES", 4_000_000)
    with pytest.raises(Rejected, match="larger than"):
        read_dataset(path)


def test_a_damaged_deflated_data_set_is_turned_away(tmp_path):
    path = save(grey_image(ramp(), 8, DeflatedExplicitVRLittleEndian), tmp_path / "image.dcm")
    content = path.read_bytes()
    path.write_bytes(content[:-2000] + bytes(2000))
    with pytest.raises(Rejected):
        decode_pixels(read_dataset(path))


def colour_image(rgb):
    ds = grey_image(rgb[..., 0])
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.PixelData = rgb.tobytes()
    return ds


def test_three_equal_channels_are_grey():
    grey = ramp()
    assert np.array_equal(decode_pixels(colour_image(np.stack([grey, grey, grey], -1))), grey)


def test_a_coloured_picture_is_turned_away():
    grey = ramp()
    assert "in colour" in rejection(colour_image(np.stack([grey, grey, 255 - grey], -1)))


def test_a_jpeg_of_a_grey_scan_in_colour_is_grey():
    grey = cv2.GaussianBlur(ramp(256, 256), (0, 0), 3)
    jpeg = io.BytesIO()
    Image.fromarray(np.stack([grey] * 3, -1)).save(jpeg, "JPEG", quality=80)
    ds = colour_image(np.stack([grey] * 3, -1))
    ds.file_meta.TransferSyntaxUID, ds.PhotometricInterpretation = JPEGBaseline8Bit, "YBR_FULL_422"
    ds.PixelData = encapsulate([jpeg.getvalue()])
    assert np.abs(decode_pixels(ds).astype(int) - grey).max() < 20


@pytest.mark.parametrize("kind", ["png", "tif", "jpg"])
def test_reads_grey_picture_files(kind, tmp_path):
    grey = cv2.GaussianBlur(ramp(), (0, 0), 2)
    Image.fromarray(grey).save(tmp_path / f"image.{kind}")
    read = read_image_file(tmp_path / f"image.{kind}")
    assert read.dtype == np.uint8
    assert np.abs(read.astype(int) - grey).max() <= (12 if kind == "jpg" else 0)


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_reads_pictures_of_16_bits(kind, tmp_path):
    grey = ramp(dtype=np.uint16) * 257
    cv2.imwrite(str(tmp_path / f"image.{kind}"), grey)
    read = read_image_file(tmp_path / f"image.{kind}")
    assert read.dtype == np.uint16
    assert np.array_equal(read, grey)


def test_reads_a_grey_picture_in_colour_channels(tmp_path):
    grey = ramp()
    Image.fromarray(np.stack([grey, grey, grey], -1)).save(tmp_path / "image.png")
    assert np.array_equal(read_image_file(tmp_path / "image.png"), grey)


def test_a_tiff_whose_white_is_zero_is_inverted(tmp_path):
    grey = ramp(dtype=np.uint16) * 257
    Image.fromarray(grey).save(tmp_path / "image.tif", tiffinfo={262: 0})
    assert np.array_equal(read_image_file(tmp_path / "image.tif"), 65535 - grey)


def test_turns_a_picture_as_its_exif_says(tmp_path):
    grey = ramp()
    image = Image.fromarray(grey)
    exif = image.getexif()
    exif[0x0112] = 3  # lies upside down
    image.save(tmp_path / "image.png", exif=exif)
    assert np.array_equal(read_image_file(tmp_path / "image.png"), grey[::-1, ::-1])


def test_a_coloured_picture_file_is_turned_away(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (150, 150, 3), np.uint8)).save(tmp_path / "image.png")
    with pytest.raises(Rejected, match="in colour"):
        read_image_file(tmp_path / "image.png")


def test_a_picture_of_several_pages_is_turned_away(tmp_path):
    pages = [Image.fromarray(ramp()) for _ in range(2)]
    pages[0].save(tmp_path / "image.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(Rejected, match="several"):
        read_image_file(tmp_path / "image.tif")


@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: b"GIF89a" + c[6:], lambda c: b"text"])
def test_a_damaged_picture_file_is_turned_away(damage, tmp_path):
    Image.fromarray(ramp()).save(tmp_path / "image.png")
    (tmp_path / "image.png").write_bytes(damage((tmp_path / "image.png").read_bytes()))
    with pytest.raises(Rejected):
        read_image_file(tmp_path / "image.png")


def test_a_huge_picture_is_turned_away_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(image_file, "MAX_PIXELS", 1000)
    Image.fromarray(ramp()).save(tmp_path / "image.png")
    with pytest.raises(Rejected, match="more than can be analysed"):
        read_image_file(tmp_path / "image.png")


@pytest.mark.parametrize(
    ("dtype", "bits", "syntax"),
    [(np.uint8, 8, JPEGLSLossless), (np.uint16, 12, JPEGLSLossless), (np.uint16, 12, JPEG2000Lossless)],
)
def test_a_codestream_says_what_it_is(dtype, bits, syntax):
    ds = grey_image(stored_values(dtype, bits), bits, syntax)
    found = read_codestream(get_frame(ds.PixelData, 0, number_of_frames=1))
    assert found is not None
    assert (found.rows, found.columns, found.samples_per_pixel, found.bits, found.complete) == (61, 43, 1, bits, True)


@pytest.mark.parametrize(
    "start", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\x00\x10", b"\xff\x4f\xff\x51\x00", b"\xff\xd8\xff\xd8\x00\x00"]
)
def test_a_broken_start_of_a_codestream_says_nothing(start):
    assert read_codestream(start) is None
