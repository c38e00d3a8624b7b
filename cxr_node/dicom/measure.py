"""Counts the elements of a data set before pydicom builds it: a megabyte of empty items costs pydicom gigabytes.

It finds nested items by their bytes instead of parsing them: each item of any sequence, however hidden, begins with the same four
bytes (PS3.5 section 7.5).
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from pydicom import Dataset
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.errors import InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from cxr_node.dicom.part10 import end_of_meta, read_meta
from cxr_node.dicom.top_level import LONG_VRS
from cxr_node.errors import Rejected

MOST_ITEMS = 20_000
"""Items of sequences and fragments of pixel data, together. A radiograph has some hundred."""
MOST_ELEMENTS = 50_000
"""At the top of the data set and in what nests there; a radiograph has some three hundred."""

LONGEST_TEXT_BYTES = 10_240
"""Of a value that may be copied into results; no text that is read here may be longer by the standard (LT, PS3.5 table 6.2-1)."""

try:
    import numpy as np
except ImportError:  # a receiver does without, to save memory
    np = None  # type: ignore[assignment]

_PIXELS = 0x7FE00008
_ITEM = 0xFFFEE000
_ITEM_TAGS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
"""Little and big endian."""
_ITEM_WORDS = tuple(struct.unpack("=HH", tag) for tag in _ITEM_TAGS)
"""The same as numbers of two bytes each."""
_TEXTS = frozenset(("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"))
_UNDEFINED = 0xFFFFFFFF
_PIECE_BYTES = 1 << 22
_TOO_MUCH = "The object has far more data elements than a radiograph."
_TOO_LARGE = "The object is larger than can be analysed."


def check_size(path: Path, most_inflated_bytes: int) -> None:
    """See that pydicom can build the data set of a file in little memory and time.

    Args:
        path: the file, with or without file meta information.
        most_inflated_bytes: how large a deflated data set may become.

    Raises:
        Rejected: it holds too much.
        OSError: the file can't be read.
    """
    try:
        syntax = read_meta(path).get("TransferSyntaxUID")
    except InvalidDicomError:  # no preamble: a data set alone
        syntax = None
    with path.open("rb") as file:
        beginning = file.read(256)
        begin = end_of_meta(beginning) or (132 if beginning[128:132] == b"DICM" else 0)
        if syntax == DeflatedExplicitVRLittleEndian:
            file.seek(begin)
            check_content(_inflated(file, most_inflated_bytes), 0, explicit=True, big_endian=False)
            return
        file.seek(0, 2)
        if file.tell() <= begin:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            explicit = syntax != ImplicitVRLittleEndian if syntax else content[4:6].isalpha()
            check_content(content, begin, explicit=explicit, big_endian=syntax == ExplicitVRBigEndian)


def check_content(content: bytes | mmap.mmap, begin: int, *, explicit: bool, big_endian: bool) -> None:
    """See the same of a data set in memory, which begins at `begin`.

    Raises:
        Rejected: it holds too much.
    """
    items = 0
    for at in range(begin, len(content), _PIECE_BYTES):
        items += _items_in(content, at, min(at + _PIECE_BYTES + 3, len(content)))
        if items > MOST_ITEMS:
            raise Rejected(_TOO_MUCH)
    for count, _ in enumerate(_walk(content, begin, explicit, ">" if big_endian else "<"), 1):
        if count > MOST_ELEMENTS:
            raise Rejected(_TOO_MUCH)


def drop_long_texts(ds: Dataset) -> None:
    """Remove texts at the top of a data set that are longer than any may be, in place: they would be copied into each result."""
    for tag in list(ds.keys()):
        element = ds.get_item(tag)
        if not isinstance(element, RawDataElement) or not element.value or len(element.value) <= LONGEST_TEXT_BYTES:
            continue
        vr = element.VR
        if vr in (None, "UN"):
            vr = dictionary_VR(tag) if dictionary_has_tag(tag) else ""
        if vr in _TEXTS:
            del ds[tag]


def size_of(sequence: Sequence[Dataset]) -> int:
    """About how many bytes a sequence has that pydicom has built."""
    return sum(8 + len(str(element.value)) for item in sequence for element in item.iterall())


def _walk(content: bytes | mmap.mmap, at: int, explicit: bool, order: str) -> Iterator[int]:
    """Where each element begins, items, fragments and delimiters included; ends where nothing more can be made out.

    A value is entered where it has no length, or may be a sequence: what is in it comes like elements at the top.
    """
    tag_of, long_of, short_of = struct.Struct(f"{order}HH"), struct.Struct(f"{order}L"), struct.Struct(f"{order}H")
    item, size, is_in_fragments = _ITEM_TAGS[order == ">"], len(content), False
    while at + 8 <= size:
        yield at
        group, number = tag_of.unpack_from(content, at)
        tag = group << 16 | number
        if group == 0xFFFE:
            (length,) = long_of.unpack_from(content, at + 4)
            at += 8 + (length if is_in_fragments and tag == _ITEM and length != _UNDEFINED else 0)
            is_in_fragments = is_in_fragments and tag == _ITEM
            continue
        is_in_fragments = False
        vr = bytes(content[at + 4 : at + 6]) if explicit else b""
        if vr in LONG_VRS:
            if at + 12 > size:
                return
            (length,), at = long_of.unpack_from(content, at + 8), at + 12
        elif vr.isalpha() and vr.isupper():
            (length,), at = short_of.unpack_from(content, at + 6), at + 8
        else:
            vr = b""
            (length,), at = long_of.unpack_from(content, at + 4), at + 8
        if length == _UNDEFINED:
            is_in_fragments = vr not in (b"SQ", b"UN", b"") or tag >= _PIXELS
        elif vr not in (b"SQ", b"UN", b"") or content[at : at + 4] != item:
            at += length


def _items_in(content: bytes | bytearray | mmap.mmap, begin: int, end: int) -> int:
    """How often an item's tag stands in content[begin:end], at any offset.

    NumPy takes a quarter of the time of `bytes.count`, and other threads can run meanwhile.
    """
    if np is None:
        return sum(content[begin:end].count(tag) for tag in _ITEM_TAGS)
    items = 0
    for offset in range(begin, min(begin + 2, end - 3)):
        words = np.frombuffer(content, np.uint16, (end - offset) // 2, offset)
        for first, second in _ITEM_WORDS:
            (places,) = np.nonzero(words[:-1] == first)
            items += int(np.count_nonzero(words[places + 1] == second))
    return items


def _inflated(file: BinaryIO, most_bytes: int) -> bytes:
    """A deflated data set (PS3.5 annex A.5), piece by piece; given up as soon as it is too large or holds too many items."""
    inflater, inflated, items = zlib.decompressobj(-zlib.MAX_WBITS), bytearray(), 0
    waiting = b""
    while waiting := waiting or file.read(1 << 20):
        more = inflater.decompress(waiting, _PIECE_BYTES)
        piece = bytes(inflated[-3:]) + more
        items += _items_in(piece, 0, len(piece))
        inflated += more
        waiting = inflater.unconsumed_tail
        if len(inflated) > most_bytes:
            raise Rejected(_TOO_LARGE)
        if items > MOST_ITEMS:
            raise Rejected(_TOO_MUCH)
        if inflater.eof:
            break
    return bytes(inflated)
