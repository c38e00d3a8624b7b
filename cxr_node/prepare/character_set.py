"""Corrects a Specific Character Set that is misspelt or contradicted by the texts, because results copy both."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from contextlib import suppress

from pydicom import DataElement, Dataset
from pydicom.charset import convert_encodings, decode_bytes, python_encoding
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.valuerep import TEXT_VR_DELIMS

from cxr_node.prepare.header import as_list, value_of

_TAG, _NAME = Tag("SpecificCharacterSet"), Tag("PatientName")
_TEXTS = frozenset(("LO", "SH", "PN", "ST", "LT", "UT", "UC"))
_OF_SEVERAL_BYTES = frozenset(("58", "87", "149", "159"))
"""ISO registrations that there are with code extensions only (PS3.3 table C.12-4)."""
_ALONE = frozenset(("ISO_IR 192", "GB18030", "GBK"))
"""Never with code extensions (PS3.3 C.12.1.1.2)."""
_HAS_CONTROLS = re.compile("[\x80-\x9f]")
"""No text has these (PS3.5 section 6.1.3), but UTF-8 that is read as a set of one byte a letter has."""
_LATIN_9 = "ISO_IR 203"
"""A character set of 2022, which pydicom doesn't know."""


def settle_character_set(ds: Dataset) -> None:
    """Give a data set the character set that its texts are in, in place; nothing changes where none is declared.

    - Spellings such as ISO-IR 100 become the defined term, and a term that excludes others is kept alone.
    - If the patient's name (other texts where it is ASCII) can't be decoded with the declared set, or that set is
      unknown: ISO_IR 192 if the bytes are UTF-8, otherwise ISO_IR 100, in which every byte is kept. ISO_IR 192 too if they are
      UTF-8, and would have control characters in the declared set.

    Args:
        ds: as pydicom read it, with its texts still undecoded.
    """
    written = [str(value) for value in as_list(value_of(ds, "SpecificCharacterSet"))]
    declared = [name.strip(" \0") for name in written]
    names = [_spelled(name, is_alone=len(declared) == 1) for name in declared]
    if not any(names):
        return
    names = names[:1] if names[0] in _ALONE else names
    texts = list(_telling_texts(ds))
    if _LATIN_9 in (names[0], names[0].replace("ISO 2022 IR", "ISO_IR")):
        _read_with(ds, ["iso8859_15"])
        return  # as it is declared: results are written in UTF-8
    is_utf_8 = all(map(_is_utf_8, texts))
    if not all(_is_in(names, text) for text in texts):
        names = ["ISO_IR 192" if is_utf_8 else "ISO_IR 100"]
    elif is_utf_8 and len(names) == 1 and any(map(_HAS_CONTROLS.search, (_decoded(names, text) for text in texts))):
        names = ["ISO_IR 192"]
    if names != declared and all(name in python_encoding for name in names):
        ds[_TAG] = DataElement(_TAG, "CS", names)
        _read_with(ds, convert_encodings(names))


def _spelled(name: str, *, is_alone: bool) -> str:
    """The defined term that a value of Specific Character Set means; the value itself if it resembles none."""
    found = re.fullmatch(r"ISO[ _-]?(?:2022)?[ _-]?IR[ _-]*(\d+)", name, re.IGNORECASE)
    if found is None:
        utf_8 = re.fullmatch(r"(?:UNICODE )?UTF[ _-]?8", name, re.IGNORECASE)
        return "ISO_IR 192" if utf_8 else name
    extended = found[1] in _OF_SEVERAL_BYTES or (found[1] != "192" and not is_alone and "2022" in name)
    return f"{'ISO 2022 IR' if extended else 'ISO_IR'} {found[1]}"


def _telling_texts(ds: Dataset) -> Iterator[bytes]:
    """The patient's name; if that is ASCII, all texts at the top that are not."""
    name = ds.get_item(_NAME) if _NAME in ds else None
    if isinstance(name, RawDataElement) and name.value and not name.value.isascii():
        yield name.value
        return
    for tag in list(ds.keys()):
        element = ds.get_item(tag)
        if isinstance(element, RawDataElement) and element.value and not element.value.isascii():
            vr = element.VR or (dictionary_VR(tag) if dictionary_has_tag(tag) else "")
            if vr in _TEXTS:
                yield element.value


def _is_in(names: list[str], text: bytes) -> bool:
    """Whether a text can be decoded with these character sets."""
    if len(names) == 1:
        with suppress(UnicodeError, LookupError):
            _decoded(names, text)
            return True
        return False
    if not all(name in python_encoding for name in names):
        return False
    return "\ufffd" not in decode_bytes(text, convert_encodings(names), TEXT_VR_DELIMS)


def _decoded(names: list[str], text: bytes) -> str:
    return codecs.decode(text, python_encoding.get(names[0], names[0]))


def _is_utf_8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeError:
        return False
    return True


def _read_with(ds: Dataset, encodings: list[str]) -> None:
    """Have what is still unread decoded so, in items of sequences too."""
    implicit_vr, little_endian = ds.original_encoding
    ds.set_original_encoding(implicit_vr, little_endian, encodings)
    for tag in list(ds.keys()):
        element = ds.get_item(tag)
        if not isinstance(element, RawDataElement) and element is not None and element.VR == "SQ":
            for item in element.value:
                if _TAG not in item:
                    _read_with(item, encodings)
