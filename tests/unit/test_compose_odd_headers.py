"""Whatever an attribute of the source holds, results are made, and lose nothing but what came from that attribute."""

from __future__ import annotations

import functools
import struct
import warnings
from io import BytesIO
from typing import Any

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from cxr_node.compose import compose_not_analysed, compose_results
from cxr_node.records import ANALYSIS_KINDS, Greys, ResultKind
from tests.compose_inputs import MODEL, NOW, SMALL, findings, radiograph, source, upright_chest

IDENTITY = ("SOPInstanceUID", "SOPClassUID", "StudyInstanceUID")
"""Without a single valid value of each, nothing is received."""
ODD_VALUES: tuple[str, ...] = (
    *("", "1\\2", "1\\2\\3", "L\\F\\X", "A\\\\B", "nonsense", "-1", "1e400", "99999999999", "+9999", "01\\01"),
    "Ünïcode^=^",
)
"""As text in a file; a backslash separates values."""
SHUTTER = (("ShutterShape", ("CIRCULAR",)), ("CenterOfCircularShutter", (80, 64)), ("RadiusOfCircularShutter", (70,)))


class Watched(Dataset):
    """Notes which of its attributes are read."""

    read: set[str]

    def get(self, key: Any, default: Any = None) -> Any:
        self._note(key)
        return super().get(key, default)

    def __getattr__(self, name: str) -> Any:
        self._note(name)
        return super().__getattr__(name)

    def __getitem__(self, key: Any) -> Any:
        self._note(key)
        return super().__getitem__(key)

    def __contains__(self, key: Any) -> bool:
        self._note(key)
        return super().__contains__(key)

    def _note(self, key: Any) -> None:
        tag = tag_for_keyword(key) if isinstance(key, str) else key
        keyword = pydicom.datadict.keyword_for_tag(tag) if tag is not None and not isinstance(tag, slice) else ""
        if keyword:
            self.__dict__.setdefault("read", set()).add(keyword)


def all_results(ds: Dataset) -> dict[str, Dataset]:
    """Every kind of result and both notices, read back from their bytes."""
    shown = radiograph(upright_chest(160, 128))
    greys = Greys(shutter=SHUTTER, rescale=(2.0, 1.0), window=(100.0, 200.0))
    shown = type(shown)(shown.pixels, shown.network_image, shown.geometry, greys)
    made = compose_results(ds, shown, findings(), kinds=tuple(ResultKind), overlay=SMALL, now=NOW)
    notices = compose_not_analysed(ds, ["too dark"], MODEL, kinds=(ResultKind.OVERLAY, ResultKind.REPORT), now=NOW)
    named = [*((str(item.kind), item) for item in made), *((f"no {item.kind}", item) for item in notices)]
    return {name: pydicom.dcmread(BytesIO(item.content)) for name, item in named}


@functools.cache
def keywords_read() -> tuple[str, ...]:
    """Every attribute of the source that composing reads, but those that reception vouches for."""
    watched = Watched(source())
    watched.file_meta = source().file_meta
    all_results(watched)
    return tuple(sorted(watched.__dict__["read"] - set(IDENTITY)))


def with_odd(keyword: str, text: str) -> Dataset:
    """The source with an attribute that holds a text as a file may have it, whatever its VR allows."""
    ds = source()
    tag = Tag(tag_for_keyword(keyword))
    vr = dictionary_VR(tag).split(" or ")[0]
    if vr == "SQ":
        item = Dataset()
        item.add(DataElement("CodeValue", "SH", text.split("\\"), validation_mode=0))
        ds[tag] = DataElement(tag, "SQ", [item, Dataset()][: 1 + text.count("\\")] if text else [])
        return ds
    raw = {"US": b"\x01\x00\x02\x00\x03\x00", "UL": b"\1\0\0\0\2\0\0\0"}.get(vr, text.encode("latin-1"))
    ds._dict[tag] = RawDataElement(tag, vr, len(raw), raw + b" " * (len(raw) % 2), 0, False, True)
    return ds


def test_what_composing_reads_is_seen():
    assert {"PatientName", "InstanceNumber", "PixelSpacing", "PatientOrientation", "RequestAttributesSequence"} <= set(
        keywords_read()
    )


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_an_odd_attribute_costs_nothing_but_itself(data):
    keyword = data.draw(st.sampled_from(keywords_read()))
    text = data.draw(st.sampled_from(ODD_VALUES))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of the value
        made = all_results(with_odd(keyword, text))
    assert len(made) == len(ANALYSIS_KINDS) + 2
    for ds in made.values():
        kept = {"PatientID": "T-1", "AccessionNumber": "A-77", "StudyID": "7", "PatientSex": "F", "PatientBirthDate": "19600229"}
        for name, value in kept.items():
            if name != keyword:
                assert ds.get(name) == value


@pytest.mark.parametrize("keyword", ["InstanceNumber", "PixelSpacing"])
@pytest.mark.parametrize("text", ODD_VALUES, ids=repr)
def test_numbers_and_names_of_any_multiplicity_are_survived(keyword, text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert all_results(with_odd(keyword, text))["report"].PatientID == "T-1"


BROKEN_ITEMS = {
    "an item's tag and half a length": "feff00e00000",
    "no item": "0800160055490400312e3200",
    "an item longer than the sequence": "feff00e0ff00000008005000534802004142",
    "an element longer than its item": "feff00e008000000080050005348f000",
    "an element of a VR that doesn't exist": "feff00e00a00000008005000555102004142",
}


@pytest.mark.parametrize("vr", ["SQ", "UN"])
@pytest.mark.parametrize("items", BROKEN_ITEMS.values(), ids=BROKEN_ITEMS)
@pytest.mark.parametrize("keyword", [word for word in keywords_read() if dictionary_VR(tag_for_keyword(word)) == "SQ"])
def test_a_sequence_with_broken_items_costs_nothing_but_itself(keyword, items, vr):
    ds, tag, content = source(), Tag(tag_for_keyword(keyword)), bytes.fromhex(items)
    ds._dict[tag] = RawDataElement(tag, vr, len(content), content, 0, False, True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = all_results(ds)
    assert {one.PatientID for one in made.values()} == {"T-1"}
    assert len(made) == len(ANALYSIS_KINDS) + 2


SEQUENCES = [word for word in keywords_read() if dictionary_VR(tag_for_keyword(word)) == "SQ"]
_NESTED = ("PatientID", "CodeValue", "CodeMeaning", "AccessionNumber", "RequestedProcedureID", "ReferencedSOPInstanceUID", "Rows")
_OF_ITEMS = (b"", b"1\\2", b"nonsense", b"\xff\xfe\x00", "日本^太郎".encode(), b"\x1b$B;3ED\x1b(B", b"1..2", b"x" * 300)
_ITEM_CHARACTER_SETS = (None, b"ISO_IR 100", b"ISO-IR 100", b"NONSENSE", b"\\ISO 2022 IR 87", b"GB18030")


def element(tag: int, vr: str, value: bytes) -> bytes:
    """Explicit VR Little Endian."""
    value += b" " * (len(value) % 2)
    long = vr in ("SQ", "UN", "OB", "UT")
    length = struct.pack("<HL", 0, len(value)) if long else struct.pack("<H", len(value))
    return struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode()) + length + value


def item(content: bytes) -> bytes:
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(content)) + content


@st.composite
def odd_items(draw: st.DrawFn, depth: int = 0) -> bytes:
    """Items with a character set of their own, private and repeated elements, wrong VRs, and items below."""
    made = b""
    for _ in range(draw(st.integers(0, 3))):
        named = draw(st.sampled_from(_ITEM_CHARACTER_SETS))
        content = b"" if named is None else element(0x00080005, "CS", named)
        for _ in range(draw(st.integers(0, 4))):
            tag = tag_for_keyword(draw(st.sampled_from(_NESTED)))
            vr = draw(st.sampled_from((dictionary_VR(tag), dictionary_VR(tag), "SH", "UN", "FD", "US", "AT", "PN")))
            content += element(tag, vr, draw(st.sampled_from(_OF_ITEMS)))
        if draw(st.booleans()):
            content += element(0x00110010, "LO", b"MAKER") + element(0x00111001, "LO", b"private")
        if depth < 2 and draw(st.booleans()):
            content += element(tag_for_keyword("RequestedProcedureCodeSequence"), "SQ", draw(odd_items(depth + 1)))
        made += item(content)
    return made


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(keyword=st.sampled_from(SEQUENCES), vr=st.sampled_from(["SQ", "UN"]), content=odd_items())
def test_odd_items_cost_nothing_but_themselves(keyword, vr, content):
    ds, tag = source(), Tag(tag_for_keyword(keyword))
    ds._dict[tag] = RawDataElement(tag, vr, len(content), content, 0, False, True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = all_results(ds)
        texts = [str(below.value) for one in made.values() for below in one.iterall()]  # each can be read again
    assert texts
    for one in made.values():
        assert (one.PatientID, str(one.PatientName), one.AccessionNumber) == ("T-1", "Test^Radiograph", "A-77")
        assert not any(below.tag.is_private for below in one.iterall())


@pytest.mark.parametrize(
    "odd",
    [("PatientName", "FD", b"12345"), ("PatientName", "OB", b"1234"), ("TypeOfPatientID", "AT", b"12345")],
    ids=["a number with a byte too few", "bytes in place of a name", "a tag with a byte too many"],
)
def test_an_odd_element_of_an_item_leaves_its_neighbours(odd):
    keyword, vr, value = odd
    other = element(tag_for_keyword("PatientID"), "SH", b"T-2")  # LO in the standard
    content = item(element(tag_for_keyword(keyword), vr, value) + other)
    ds, tag = source(), Tag("OtherPatientIDsSequence")
    ds._dict[tag] = RawDataElement(tag, "SQ", len(content), content, 0, False, True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = all_results(ds)
    for one in made.values():
        (kept,) = one.OtherPatientIDsSequence
        assert [(below.keyword, below.VR, below.value) for below in kept] == [("PatientID", "LO", "T-2")]


def test_texts_of_an_item_with_a_character_set_of_its_own_are_kept():
    inside = element(0x00080005, "CS", b"ISO_IR 100") + element(tag_for_keyword("PatientID"), "LO", "Müßig".encode("latin-1"))
    content = item(inside)
    ds, tag = source(SpecificCharacterSet="ISO_IR 144", PatientName="Иванов^Иван"), Tag("OtherPatientIDsSequence")
    ds._dict[tag] = RawDataElement(tag, "SQ", len(content), content, 0, False, True)
    for one in all_results(ds).values():
        assert str(one.PatientName) == "Иванов^Иван"
        assert one.OtherPatientIDsSequence[0].PatientID == "Müßig"


@pytest.mark.parametrize("keyword", [word for word in keywords_read() if dictionary_VR(tag_for_keyword(word)) == "US"])
def test_a_number_with_a_byte_too_many_costs_nothing_but_itself(keyword):
    ds, tag = source(), Tag(tag_for_keyword(keyword))
    ds._dict[tag] = RawDataElement(tag, "US", 3, b"\1\0\0", 0, False, True)
    assert all_results(ds)["report"].PatientID == "T-1"
