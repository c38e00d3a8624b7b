"""How much a data set is made of is known before pydicom builds it, however it is hidden."""

from __future__ import annotations

import struct
import tracemalloc
import warnings
import zlib
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from cxr_node.dicom import measure
from cxr_node.dicom.measure import check_content, check_size
from cxr_node.errors import Rejected
from cxr_node.prepare.codestream import check_codestream
from cxr_node.prepare.source import read_dicom, read_unanalysed_header
from tests.images import grey_image, ramp, save
from tests.receiver import encoded, radiograph

ITEM = b"\xfe\xff\x00\xe0\x00\x00\x00\x00"
MANY = ITEM * 1_000_000


def with_bomb(bomb, transfer_syntax=ExplicitVRLittleEndian):
    """A radiograph as a Part 10 file's bytes, the bomb in front of its pixels."""
    content = encoded(radiograph(), ExplicitVRLittleEndian)
    at = content.index(b"\xe0\x7f\x10\x00OW")
    content = content[:at] + bomb + content[at:]
    if transfer_syntax == DeflatedExplicitVRLittleEndian:
        compressor = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
        content = compressor.compress(content) + compressor.flush()
    uid = transfer_syntax.encode() + b"\x00" * (len(transfer_syntax) % 2)
    meta = struct.pack("<HH2sH", 2, 0x10, b"UI", len(uid)) + uid
    return bytes(128) + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(meta)) + meta + content


BOMBS = {
    "items inside a length": b"\x08\x00\x40\x11SQ\x00\x00" + struct.pack("<L", len(MANY)) + MANY,
    "items without a length": b"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff" + MANY + b"\xfe\xff\xdd\xe0\x00\x00\x00\x00",
    "items inside UN": b"\x09\x00\x01\x10UN\x00\x00" + struct.pack("<L", len(MANY)) + MANY,
    "empty elements": b"".join(struct.pack("<HH2sH", 0x11, 0x1000 + n % 0xE000, b"LO", 0) for n in range(200_000)),
    "empty elements in an item": b"\x08\x00\x40\x11SQ\x00\x00"
    + struct.pack("<L", 8 + 1_600_000)
    + b"\xfe\xff\x00\xe0"
    + struct.pack("<L", 1_600_000)
    + b"\x08\x00\x18\x00UI\x00\x00" * 200_000,
    "elements after empty pixels": b"\xe0\x7f\x08\x00OF\x00\x00\x00\x00\x00\x00" + b"\xe0\x7f\x11\x00LO\x00\x00" * 200_000,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian], ids=["plain", "deflated"])
def test_what_holds_too_much_is_rejected_in_little_memory(tmp_path, bomb, syntax):
    path = tmp_path / "bomb.dcm"
    path.write_bytes(with_bomb(bomb, syntax))
    tracemalloc.start()
    try:
        with pytest.raises(Rejected, match="far more data elements"):
            read_dicom(path)
        assert read_unanalysed_header(path) is None
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


def test_hundreds_of_megabytes_in_a_deflated_file_are_not_inflated(tmp_path):
    compressor = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    head, _, tail = with_bomb(b"").partition(b"\x08\x00\x16\x00UI")
    head = head.replace(ExplicitVRLittleEndian.encode() + b"\x00", DeflatedExplicitVRLittleEndian.encode())
    deflated = compressor.compress(b"\x08\x00\x16\x00UI" + tail[:60] + b"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff")
    deflated += b"".join(compressor.compress(ITEM * 131072) for _ in range(200)) + compressor.flush()
    path = tmp_path / "bomb.dcm"
    meta = struct.pack("<HH2sH", 2, 0x10, b"UI", 22) + DeflatedExplicitVRLittleEndian.encode()
    path.write_bytes(bytes(128) + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(meta)) + meta + deflated)
    assert path.stat().st_size < 2**20
    with pytest.raises(Rejected, match="far more data elements"):
        check_size(path, 2**30)


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_radiographs_pass(tmp_path, syntax):
    check_size(save(grey_image(ramp(160, 200), transfer_syntax=syntax), tmp_path / "image.dcm"), 2**30)


def test_pixels_in_some_thousand_fragments_pass():
    fragment = b"\xfe\xff\x00\xe0" + struct.pack("<L", 4096) + b"\x08\x00" * 2048
    content = encoded(radiograph())
    pixels = b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff" + fragment * 4000 + b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
    check_content(content[: content.index(b"\xe0\x7f\x10\x00OW")] + pixels, 0, explicit=True, big_endian=False)


def test_a_text_of_megabytes_comes_into_no_result(tmp_path):
    ds = grey_image(ramp(160, 200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.PatientName, ds.PatientID = "A" * (20 * 2**20), "P1"
        path = save(ds, tmp_path / "image.dcm")
    read = read_unanalysed_header(path)
    assert "PatientName" not in read
    assert read.PatientID == "P1"


def j2k(width=2000, height=2000, tile=(2000, 2000), layers=1, levels=5, block=(4, 4)):
    """The beginning of a JPEG 2000 codestream, SIZ and COD, and its end."""
    siz = struct.pack(">HIIIIIIIIH", 0, width, height, 0, 0, *tile, 0, 0, 1) + b"\x0f\x01\x01"
    cod = struct.pack(">BBHBBBBBB", 0, 0, layers, 0, levels, *block, 0, 0)
    markers = b"\xff\x51" + struct.pack(">H", len(siz) + 2) + siz + b"\xff\x52" + struct.pack(">H", len(cod) + 2) + cod
    return b"\xff\x4f" + markers + b"\xff\x90\x00\x0a" + bytes(8) + b"\xff\x93\xff\xd9"


@pytest.mark.parametrize(
    "bomb",
    [
        {"tile": (1, 1)},
        {"tile": (0, 0)},
        {"layers": 65535, "tile": (200, 200)},
        {"width": 10_000, "height": 10_000, "block": (0, 0)},
    ],
    ids=["tiles of a pixel", "tiles of nothing", "layers", "code blocks"],
)
def test_a_codestream_of_too_many_parts_is_not_decoded(bomb):
    ds = Dataset()
    ds.Rows, ds.Columns = bomb.get("height", 2000), bomb.get("width", 2000)
    ds.SamplesPerPixel, ds.BitsAllocated = 1, 16
    with pytest.raises(Rejected, match="more compressed parts"):
        check_codestream(ds, j2k(**bomb))
    usual = Dataset(ds)
    usual.Rows = usual.Columns = 2000
    check_codestream(usual, j2k())


def test_a_jpeg_of_thousands_of_scans_is_not_decoded():
    ds = Dataset()
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.BitsAllocated = 64, 64, 1, 8
    frame = b"\xff\xd8\xff\xc2" + struct.pack(">HBHHB", 11, 8, 64, 64, 1) + b"\x01\x11\x00"
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00\x00"
    check_codestream(ds, frame + scan * 10 + b"\xff\xd9")
    with pytest.raises(Rejected, match="more compressed parts"):
        check_codestream(ds, frame + scan * 5000 + b"\xff\xd9")


@given(st.lists(st.sampled_from([*measure._ITEM_TAGS, b"\xfe", b"\xff", b"\xe0\x00", b"\0", b"ab"]), max_size=30))
def test_items_are_counted_at_any_offset_with_numpy_and_without(pieces):
    content = b"".join(pieces)
    expected = sum(content.count(tag) for tag in measure._ITEM_TAGS)
    assert measure._items_in(content, 0, len(content)) == expected
    with mock.patch.object(measure, "np", None):
        assert measure._items_in(content, 0, len(content)) == expected
