"""Reads DICOM files whose data set repeats file meta information or an element: the first counts (PS3.10 section 7).

Some senders leave elements of group 0002 in the data set that they send. pydicom reads these too, and uses their transfer syntax
instead of the negotiated one in the file meta information.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from pydicom.dataset import FileMetaDataset
from pydicom.filereader import dcmread, read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from cxr_node.dicom.top_level import LONG_VRS, top_elements

_PREAMBLE_BYTES = 132
_GROUP_LENGTH = struct.Struct("<HH2sHL")
"""The first element of the file meta information, (0002,0000)."""
_UNDEFINED = 0xFFFFFFFF


def source_of(path: Path) -> Path | BytesIO:
    """What pydicom can read of a file: its path, or the file without what pydicom would read otherwise than others do.

    That is group 0002 where the data set begins, and an element that is there again: of repeated ones pydicom takes the last,
    dcmtk, and with it Orthanc and most archives, the first.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        head = file.read(_PREAMBLE_BYTES + _GROUP_LENGTH.size)
        end = end_of_meta(head)
        syntax = read_meta(path).get("TransferSyntaxUID") if end else None
        if syntax == DeflatedExplicitVRLittleEndian or file.seek(0, 2) <= end:
            return path
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            explicit = syntax != ImplicitVRLittleEndian if syntax else content[4:6].isalpha()
            order = ">" if syntax == ExplicitVRBigEndian else "<"
            begin = end or (_PREAMBLE_BYTES if head[_PREAMBLE_BYTES - 4 : _PREAMBLE_BYTES] == b"DICM" else 0)
            first = after_group_2(content, begin, order) if end else begin
            again = list(_repeated(content, first, explicit=explicit, little_endian=order == "<"))
            if first == begin and not again:
                return path
            kept, at = [content[:begin]], first
            for start, stop in again:
                kept.append(content[at:start])
                at = stop
            return BytesIO(b"".join((*kept, content[at:])))


def _repeated(content: mmap.mmap, at: int, *, explicit: bool, little_endian: bool) -> Iterator[tuple[int, int]]:
    """Where those elements at the top of a data set lie that have been there before."""
    seen: set[int] = set()
    for tag, begin, end in top_elements(content, at, explicit=explicit, little_endian=little_endian):
        if tag in seen:
            yield begin, end
        seen.add(tag)


def read_meta(path: Path) -> FileMetaDataset:
    """The file meta information only.

    Raises:
        InvalidDicomError: there is none.
        OSError: the file can't be read.
    """
    with path.open("rb") as file:
        end = end_of_meta(file.read(_PREAMBLE_BYTES + _GROUP_LENGTH.size))
        file.seek(0)
        meta = file.read(end)
    if not end or len(meta) < end:
        return read_file_meta_info(path)
    return dcmread(BytesIO(meta), force=True).file_meta


def after_group_2(content: bytes | mmap.mmap, at: int, order: str = "<") -> int:
    """Where the elements of group 0002 that begin at `at` end; `at` if there are none, the place of one that is broken.

    Args:
        content: what holds the data set.
        at: where in it the data set begins.
        order: of its bytes, as `struct` has it.
    """
    while at + 12 <= len(content) and struct.unpack_from(f"{order}H", content, at) == (0x0002,):
        vr = bytes(content[at + 4 : at + 6])
        if vr in LONG_VRS:
            (length,), header = struct.unpack_from(f"{order}L", content, at + 8), 12
        elif vr.isalpha() and vr.isupper():
            (length,), header = struct.unpack_from(f"{order}H", content, at + 6), 8
        else:
            (length,), header = struct.unpack_from(f"{order}L", content, at + 4), 8
        if length == _UNDEFINED or at + header + length > len(content):
            return at
        at += header + length
    return at


def file_in(content: bytes | mmap.mmap, at: int) -> tuple[int, str] | None:
    """Where the data set of a whole file begins that lies where a data set should, and the transfer syntax that the file names.

    Args:
        content: what holds it.
        at: where it begins, preamble included.

    Returns:
        None if no file with preamble and file meta information begins there. The transfer syntax is empty if it names none.
    """
    first = at + _PREAMBLE_BYTES
    if content[first - 4 : first + 2] != b"DICM\x02\x00":
        return None
    end = after_group_2(content, first)
    try:
        syntax = dcmread(BytesIO(bytes(content[at:end])), force=True).file_meta.get("TransferSyntaxUID")
    except Exception:  # pydicom raises whatever broken bytes lead it to
        syntax = None
    return end, str(syntax or "")


def end_of_meta(beginning: bytes) -> int:
    """Where the data set begins, by the group length element; 0 if there is none."""
    if len(beginning) < _PREAMBLE_BYTES + _GROUP_LENGTH.size or beginning[128:132] != b"DICM":
        return 0
    group, number, vr, size, length = _GROUP_LENGTH.unpack_from(beginning, _PREAMBLE_BYTES)
    if (group, number, vr, size) != (0x0002, 0x0000, b"UL", 4):
        return 0
    return _PREAMBLE_BYTES + _GROUP_LENGTH.size + int(length)
