"""The places of the elements at the top of a data set, in every encoding, and of hostile ones in bounded time."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from cxr_node.dicom.top_level import MOST_ELEMENTS, top_elements
from tests.receiver import encoded, radiograph

SYNTAXES = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian)
ITEM, UNDEFINED = b"\xfe\xff\x00\xe0", b"\xff\xff\xff\xff"
END_OF_ITEM, END_OF_SEQUENCE = b"\xfe\xff\x0d\xe0" + bytes(4), b"\xfe\xff\xdd\xe0" + bytes(4)


def places(content, syntax=uid.ExplicitVRLittleEndian):
    encoding = {"explicit": not syntax.is_implicit_VR, "little_endian": syntax.is_little_endian}
    return list(top_elements(content, 0, **encoding))


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_every_element_is_found_where_it_lies(syntax):
    ds = radiograph(RequestAttributesSequence=[Dataset()])
    ds.RequestAttributesSequence[0].RequestedProcedureID = "R1"
    content = encoded(ds, syntax)
    found = places(content, syntax)
    assert [tag for tag, _, _ in found] == [int(element.tag) for element in ds]
    assert [begin for _, begin, _ in found] == [0, *(end for _, _, end in found[:-1])]
    assert found[-1][2] == len(content)


def test_sequences_and_pixels_of_undefined_length_end_at_their_delimiters():
    inner = b"\x08\x00\x00\x01SH\x02\x00AB"
    sequence = b"\x08\x00\x32\x10SQ\x00\x00" + UNDEFINED + ITEM + UNDEFINED + inner + END_OF_ITEM + END_OF_SEQUENCE
    pixels = b"\xe0\x7f\x10\x00OB\x00\x00" + UNDEFINED + encapsulate([b"\x01\x02" * 9]) + END_OF_SEQUENCE
    name = b"\x10\x00\x10\x00PN\x04\x00A^B "
    assert places(sequence + pixels + name) == [
        (0x00081032, 0, len(sequence)),
        (0x7FE00010, len(sequence), len(sequence + pixels)),
        (0x00100010, len(sequence + pixels), len(sequence + pixels + name)),
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"\x10\x00\x10\x00PN\x40\x00A^B ",
        b"\x08\x00\x32\x10SQ\x00\x00" + UNDEFINED + ITEM + UNDEFINED,
        b"\x08\x00\x32\x10SQ\x00\x00" + UNDEFINED + b"\x10\x00\x10\x00PN\x04\x00A^B " + END_OF_SEQUENCE,
        (b"\x08\x00\x32\x10SQ\x00\x00" + UNDEFINED + ITEM + UNDEFINED) * 5000,
        b"\xe0\x7f\x10\x00OB\x00\x00" + UNDEFINED + (ITEM + bytes(4)) * (MOST_ELEMENTS + 1) + END_OF_SEQUENCE,
    ],
    ids=["too long", "cut off", "no items", "nested too deep", "too many fragments"],
)
def test_what_is_broken_is_no_element(content):
    assert places(content) == []


def test_the_walk_ends_after_so_many_elements():
    assert len(places(b"\xe1\x7f\x10\x00UN\x00\x00" + struct.pack("<L", 0) + bytes(0), uid.ExplicitVRLittleEndian)) == 1
    assert len(places((b"\xe1\x7f\x10\x00LO\x00\x00") * (MOST_ELEMENTS + 5))) == MOST_ELEMENTS


@given(st.binary(max_size=400), st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_bytes_end_the_walk_within_them(content, explicit, little_endian):
    found = list(top_elements(content, 0, explicit=explicit, little_endian=little_endian))
    assert all(begin < end <= len(content) for _, begin, end in found)
