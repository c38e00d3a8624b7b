"""Encodes composed data sets in Explicit VR Little Endian: the bytes of pydicom's writer in a third of its time.

For each item, pydicom searches everything below it for ambiguous VRs, so it searches a report's tree once per level. This module
leaves the values to pydicom, and also every unusual element: read from a file, with an ambiguous VR, of undefined length, with
tags as its value, or with a value that is too long for its VR.
"""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

from pydicom import DataElement, Dataset
from pydicom.charset import convert_encodings
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import correct_ambiguous_vr_element, write_data_element, write_dataset, writers
from pydicom.valuerep import AMBIGUOUS_VR, CUSTOMIZABLE_CHARSET_VR, EXPLICIT_VR_LENGTH_32, VR

_SHORT, _LONG, _ITEM = struct.Struct("<HH2sH"), struct.Struct("<HH2s2xL"), struct.Struct("<HHL")
"""Headers of elements and items (PS3.5 sections 7.1.2 and 7.5)."""
_LONGEST_SHORT = 0xFFFF


def encode(ds: Dataset, encodings: list[str] | None = None) -> bytes:
    """A data set without preamble and file meta information.

    Args:
        ds: composed here; items copied from a source may be below it.
        encodings: of the texts of what it is in, by Python's names; its own Specific Character Set comes first.
    """
    if ds.original_encoding != (None, None):  # was read
        buffer = _buffer()
        write_dataset(buffer, ds, encodings or "iso8859")
        return buffer.getvalue()
    if encodings is None or "SpecificCharacterSet" in ds:
        encodings = convert_encodings(ds.get("SpecificCharacterSet") or "iso8859")
    return b"".join([_encoded(ds[tag], ds, encodings) for tag in sorted(map(int, ds.keys()))])


def _encoded(element: DataElement, ds: Dataset, encodings: list[str]) -> bytes:
    if element.VR in AMBIGUOUS_VR:
        correct_ambiguous_vr_element(element, ds, is_little_endian=True)
    vr = element.VR
    if element.is_undefined_length or element.is_buffered or vr == VR.AT:
        return _by_pydicom(element, encodings)
    if vr == VR.SQ:
        value = b"".join([_item(item, encodings) for item in element.value])
    else:
        value = b"" if element.is_empty else _value(element, encodings)
    group, number = element.tag >> 16, element.tag & 0xFFFF
    if vr in EXPLICIT_VR_LENGTH_32:
        return _LONG.pack(group, number, vr.encode(), len(value)) + value
    if len(value) > _LONGEST_SHORT:
        return _by_pydicom(element, encodings)
    return _SHORT.pack(group, number, vr.encode(), len(value)) + value


def _value(element: DataElement, encodings: list[str]) -> bytes:
    buffer = _Value()
    write: Any
    write, form = writers[VR(element.VR)]
    if element.VR in CUSTOMIZABLE_CHARSET_VR:
        write(buffer, element, encodings=encodings)
    elif form is not None:
        write(buffer, element, form)
    else:
        write(buffer, element)
    return buffer.getvalue()


def _item(ds: Dataset, encodings: list[str]) -> bytes:
    if getattr(ds, "is_undefined_length_sequence_item", False):
        return _ITEM.pack(0xFFFE, 0xE000, 0xFFFFFFFF) + encode(ds, encodings) + _ITEM.pack(0xFFFE, 0xE00D, 0)
    value = encode(ds, encodings)
    return _ITEM.pack(0xFFFE, 0xE000, len(value)) + value


def _by_pydicom(element: DataElement, encodings: list[str]) -> bytes:
    buffer = _buffer()
    write_data_element(buffer, element, encodings)
    return buffer.getvalue()


def _buffer() -> DicomBytesIO:
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    return buffer


class _Value(BytesIO):
    """What pydicom's writers of values need of a buffer; its own is slow to make."""

    is_little_endian = True
