"""Data sets made to exhaust their reader: read in bounded time and memory, or refused."""

from __future__ import annotations

import struct
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid

from cxr_node.errors import Rejected
from cxr_node.receive.intake.elements import DEEPEST, LONGEST_VALUE_BYTES, MOST_ELEMENTS, Broken, find_elements
from cxr_node.receive.intake.header import read_header
from tests.receiver import encoded, radiograph

ITEM, SEQUENCE = b"\xfe\xff\x00\xe0", b"\x30\x00\x10\x20SQ\x00\x00\xff\xff\xff\xff"
END_OF_ITEM, END_OF_SEQUENCE = b"\xfe\xff\x0d\xe0" + bytes(4), b"\xfe\xff\xdd\xe0" + bytes(4)
UNDEFINED = b"\xff\xff\xff\xff"


def with_elements(content):
    """A good data set with something put before its pixels."""
    whole = encoded(radiograph())
    pixels = whole.index(b"\xe0\x7f\x10\x00")
    return whole[:pixels] + content + whole[pixels:]


def read(tmp_path, content):
    path = tmp_path / "instance"
    path.write_bytes(content)
    return read_header(path, 0, uid.ExplicitVRLittleEndian)[0]


BOMBS = {
    "items": (SEQUENCE + (ITEM + bytes(4)) * 2_000_000 + END_OF_SEQUENCE, "too many elements"),
    "elements": (struct.pack("<HH2sH", 0x0031, 0x1000, b"LO", 0) * 2_000_000, "too many elements"),
    "nesting": ((SEQUENCE + ITEM + UNDEFINED) * 100_000, "nested too deep"),
    "a long character set": (b"\x08\x00\x05\x00UN\x00\x00" + struct.pack("<L", 2**24) + b"A\\" * 2**23, "too long|occurs twice"),
    "a long patient ID": (b"\x10\x00\x20\x00UN\x00\x00" + struct.pack("<L", 2**24) + b"A" * 2**24, "too long|occurs twice"),
    "two study UIDs": (b"\x20\x00\x0d\x00UI\x04\x001.2\x00", "occurs twice"),
    "a length beyond the end": (b"\x31\x00\x10\x10UN\x00\x00" + struct.pack("<L", 0xFFFFFFF0), "extends beyond"),
    "no end of a sequence": (SEQUENCE, "something other than items"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_soon_and_costs_no_memory(tmp_path, kind):
    content, reason = BOMBS[kind]
    whole = with_elements(content)
    tracemalloc.start()
    try:
        started = time.process_time()
        with pytest.raises(Rejected, match=reason):
            read(tmp_path, whole)
        assert time.process_time() - started < 20, "traced, on a busy machine"
        assert tracemalloc.get_traced_memory()[1] < 2 * len(whole) + 2**20  # what the test itself writes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("depth", [1, DEEPEST // 2 - 1])
def test_nested_sequences_and_private_tags_are_passed_over(tmp_path, depth):
    private = b"\x09\x00\x10\x00LO\x06\x00MAKER " + b"\x09\x00\x01\x10UN\x00\x00\x04\x00\x00\x00\x01\x02\x03\x04"
    nested = (SEQUENCE + ITEM + UNDEFINED) * depth + private + (END_OF_ITEM + END_OF_SEQUENCE) * depth
    assert read(tmp_path, with_elements(nested)).patient_id == "P1"


def test_a_sequence_of_unknown_vr_may_be_encoded_either_way(tmp_path):
    for inner in (b"\x09\x00\x02\x10LO\x02\x00ab", b"\x09\x00\x02\x10\x02\x00\x00\x00ab"):
        unknown = b"\x31\x00\x01\x10UN\x00\x00" + UNDEFINED + ITEM + UNDEFINED + inner + END_OF_ITEM + END_OF_SEQUENCE
        assert read(tmp_path, with_elements(unknown)).patient_id == "P1"


def test_encapsulated_values_before_the_pixels_are_passed_over(tmp_path):
    fragments = b"\x31\x00\x01\x10OB\x00\x00" + UNDEFINED + ITEM + bytes(4) + ITEM + b"\x08\x00\x00\x00" + b"\xff" * 8
    assert read(tmp_path, with_elements(fragments + END_OF_SEQUENCE)).patient_id == "P1"


@pytest.mark.parametrize("patient_id", ["A\x00\x1b[2J", "\x07\x08\x7f", "../../../etc", "x" * 64])
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_control_characters_are_carried_and_do_no_harm(tmp_path, patient_id):
    assert read(tmp_path, encoded(radiograph(PatientID=patient_id))).patient_id == patient_id.strip(" \x00")


def find(content, **changes):
    values = {"explicit": True, "little_endian": True, "tags": (0x00080018,), "inside": 0x0018A001}
    return find_elements(content, 0, **values | changes)[:2]


@given(st.binary(max_size=400), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_read_or_refused(content, explicit, little_endian, is_cut):
    try:
        top, items = find(content, explicit=explicit, little_endian=little_endian, is_cut=is_cut)
    except Broken:
        return
    for values in (top, *items):
        assert all(len(value) <= LONGEST_VALUE_BYTES for value in values.values())


TAGS = st.sampled_from(
    [b"\x08\x00\x18\x00", b"\x18\x00\x01\xa0", b"\x09\x00\x01\x10", ITEM, END_OF_ITEM[:4], END_OF_SEQUENCE[:4]]
)
VRS = st.sampled_from([b"SQ\x00\x00", b"UN\x00\x00", b"OB\x00\x00", b"UI", b"LO", b"\x04\x00"])
LENGTHS = st.sampled_from([UNDEFINED, bytes(4), b"\x04\x00\x00\x00", b"\x04\x00", bytes(2)])


@given(st.lists(st.tuples(TAGS, VRS, LENGTHS, st.binary(max_size=6)).map(b"".join), max_size=40).map(b"".join))
@settings(max_examples=500, deadline=None)
def test_any_row_of_tags_is_read_or_refused(content):
    try:
        find(content)
    except Broken:
        return


def test_the_limit_is_beyond_what_real_objects_need():
    many = struct.pack("<HH2sH", 0x0031, 0x1000, b"LO", 0) * (MOST_ELEMENTS // 2)
    assert find(many) == ({}, [])
