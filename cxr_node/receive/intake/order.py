"""Sorts a data set whose elements are out of order, such as one whose pixels come before its UIDs (PS3.5 section 7.1)."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from pydicom.uid import UID

from cxr_node.dicom.measure import check_size
from cxr_node.dicom.top_level import top_elements
from cxr_node.errors import Rejected

_PIXELS = 0x7FE00008
"""Float, double float and integer pixel data are this and the next two."""
_UNDEFINED = 0xFFFFFFFF
_DELIMITER_BYTES = 8


def sort_elements(path: Path, offset: int, transfer_syntax_uid: str) -> bool:
    """Put the elements of a file's data set in order, in place; each keeps its bytes, and repeated ones their order.

    Args:
        path: a file with file meta information.
        offset: where in it the data set begins, in bytes.
        transfer_syntax_uid: how it is encoded. A deflated data set is left as it is.

    Returns:
        whether the file has changed: not if its elements are in order, or it holds something that is none.
    """
    syntax = UID(transfer_syntax_uid)
    size_bytes = path.stat().st_size
    if syntax.is_deflated or size_bytes <= offset:
        return False
    try:
        check_size(path, size_bytes)
    except Rejected:
        return False
    with path.open("rb+") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            explicit, little_endian = not syntax.is_implicit_VR, syntax.is_little_endian
            found = list(top_elements(content, offset, explicit=explicit, little_endian=little_endian))
            in_order = sorted(found, key=lambda element: element[0])
            if not found or found[-1][2] != size_bytes or in_order == found:
                return False
            written = b"".join(content[begin:end] for _, begin, end in in_order)
        file.seek(offset)
        file.write(written)
    return True


def elements_follow_the_pixels(path: Path, beginning: bytes | mmap.mmap, at: int, *, explicit: bool, little_endian: bool) -> bool:
    """Whether elements that belong before the pixels come after them, which those don't see who stop at the pixels.

    Args:
        path: the file.
        beginning: the first bytes of it, or all.
        at: where in them the pixels, or other elements that come last, begin; the end, if there are none.
        explicit: whether VRs are.
        little_endian: the byte order.
    """
    size_bytes = path.stat().st_size
    if at >= size_bytes or _is_last(path, bytes(beginning[at : at + 12]), at, size_bytes, explicit, little_endian):
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(tag < _PIXELS for tag, _, _ in top_elements(content, at, explicit=explicit, little_endian=little_endian))


def _is_last(path: Path, head: bytes, at: int, size_bytes: int, explicit: bool, little_endian: bool) -> bool:
    """Whether the file ends with the element of which `head` is the beginning, as far as that is easily seen."""
    order = "<" if little_endian else ">"
    if len(head) < 12 or head[:4] not in (struct.pack(f"{order}HH", 0x7FE0, number) for number in (8, 9, 0x10)):
        return False
    place = 8 if explicit else 4
    (length,) = struct.unpack_from(f"{order}L", head, place)
    if length != _UNDEFINED:
        return bool(at + place + 4 + length == size_bytes)
    with path.open("rb") as file:
        file.seek(-_DELIMITER_BYTES, 2)
        return file.read() == struct.pack(f"{order}HHL", 0xFFFE, 0xE0DD, 0)
