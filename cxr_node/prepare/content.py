"""The content digest of an image, independent of its encoding: over its attributes and decoded pixels.

The same image can arrive over several routes: explicit or implicit VR, big endian, lossless compression; with or without
group lengths and padding. All of these give the same digest. Attributes about the route instead of the image are left out.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.tag import BaseTag
from pydicom.uid import UID

from cxr_node.errors import Rejected
from cxr_node.prepare.decode import decode_pixels
from cxr_node.prepare.header import value_of

_PREFIX = "content:"
_LENGTH_BYTES = 28
_PIXELS = frozenset((0x7FE00001, 0x7FE00002, 0x7FE00008, 0x7FE00009, 0x7FE00010))
"""Pixel data in every form, and extended offset tables."""
_OF_THE_ROUTE = frozenset((0x00080054, 0x00080056, 0x00081190, 0x00082111, 0x00089215, 0x00880130, 0x00880140, 0xFFFCFFFC))
"""Retrieve AE Title, Instance Availability, Retrieve URL, Derivation Description and Code Sequence (a codec's note),
Storage Media File-set ID and UID, Data Set Trailing Padding."""
_OF_THE_CODING = frozenset((0x00280004, 0x00280006))
"""Photometric Interpretation and Planar Configuration: of colour, a codec may change them (PS3.5 section 8.2)."""
_PADDED = frozenset(("AE", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"))


def content_digest(ds: Dataset, stored: NDArray[Any] | None = None) -> str:
    """The digest of an image's content, at most 64 characters.

    Args:
        ds: as `decode.read_dataset` gives it.
        stored: its pixels as `decode.decode_pixels` gives them, where they are at hand.
    """
    hasher = blake3()
    _add_attributes(hasher, ds, is_colour="SamplesPerPixel" in ds and value_of(ds, "SamplesPerPixel") != 1)
    _add_pixels(hasher, ds, stored)
    return _PREFIX + hasher.hexdigest(length=_LENGTH_BYTES)


def _add_pixels(hasher: Any, ds: Dataset, stored: NDArray[Any] | None) -> None:
    if "PixelData" not in ds and stored is None:
        return
    syntax = UID(ds.file_meta.TransferSyntaxUID)
    has_losses = syntax.is_encapsulated and syntax not in LOSSLESS
    if stored is None and not has_losses:
        try:
            stored = decode_pixels(ds)
        except Rejected:  # can't be decoded: the same bytes are the same picture
            stored = None
    if stored is not None and not has_losses:
        hasher.update(struct.pack("<LL", *stored.shape))
        little_endian = np.ascontiguousarray(stored, stored.dtype.newbyteorder("<"))
        hasher.update(little_endian.tobytes())
    else:
        hasher.update(syntax.encode() + b"\0" + bytes(ds["PixelData"].value or b""))


LOSSLESS = frozenset(
    (
        "1.2.840.10008.1.2.5",  # RLE
        "1.2.840.10008.1.2.4.57",  # JPEG lossless
        "1.2.840.10008.1.2.4.70",
        "1.2.840.10008.1.2.4.80",  # JPEG-LS
        "1.2.840.10008.1.2.4.90",  # JPEG 2000, reversible only
        "1.2.840.10008.1.2.4.201",  # HTJ2K, reversible only
        "1.2.840.10008.1.2.4.202",
    )
)
"""Transfer syntaxes that keep every pixel as it was."""


def _add_attributes(hasher: Any, ds: Dataset, *, is_colour: bool = False) -> None:
    for tag in sorted(ds.keys()):
        if tag.element == 0 or tag.group <= 2 or tag in _PIXELS or tag in _OF_THE_ROUTE or (is_colour and tag in _OF_THE_CODING):
            continue
        value = _value_of(ds, tag)
        if isinstance(value, bytes):
            hasher.update(struct.pack("<LcQ", tag, b"v", len(value)))
            hasher.update(value)
            continue
        hasher.update(struct.pack("<LcQ", tag, b"s", len(value)))
        for item in value:
            hasher.update(b"item")
            _add_attributes(hasher, item)


def _value_of(ds: Dataset, tag: BaseTag) -> bytes | list[Dataset]:
    """The items of a sequence, or the value's bytes in little endian, padding taken off."""
    raw = ds.get_item(tag)
    vr = dictionary_VR(tag) if dictionary_has_tag(tag) else getattr(raw, "VR", None)
    if isinstance(raw, RawDataElement) and vr != "SQ" and raw.is_little_endian:
        return _without_padding(raw.value or b"", tag, vr)
    try:
        element = ds[tag]
        if element.VR == "SQ":
            return list(element.value)
        return _without_padding(_encoded(element), tag, vr)
    except Exception:  # pydicom raises various errors for broken values: use the bytes
        return bytes(raw.value or b"") if isinstance(raw, RawDataElement) and isinstance(raw.value, bytes) else repr(raw).encode()


def _encoded(element: DataElement) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, True
    write_data_element(buffer, element)
    content: bytes = buffer.getvalue()
    return content[8:]


def _without_padding(value: bytes, tag: BaseTag, vr: str | None) -> bytes:
    """Implicit VR doesn't say whether a private element is text."""
    return value.rstrip(b" \0") if vr in _PADDED or tag.is_private else value
