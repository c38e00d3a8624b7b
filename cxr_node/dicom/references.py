"""Reads the references of a storage commitment data set in bounded time and memory, whatever it contains (PS3.4 annex J).

pydicom builds a data set for each item: half a megabyte of empty items takes 40 MB. This reader builds only the references, up to
a limit.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from cxr_node.dicom.top_level import LONG_VRS
from cxr_node.errors import Rejected

Reference = tuple[str, str]
"""SOP class UID and SOP instance UID."""

MOST_BYTES = 1024 * 1024
MOST_REFERENCES = 10_000
_LONGEST_UID = 64
_UID = re.compile(rb"[0-9]+(\.[0-9]+)*")

_TRANSACTION, _REFERENCED, _FAILED = 0x00081195, 0x00081199, 0x00081198
_CLASS, _INSTANCE, _REASON = 0x00081150, 0x00081155, 0x00081197
_ITEM, _END_OF_ITEM, _END_OF_SEQUENCE = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_TAG, _SHORT_LENGTH, _LONG_LENGTH = struct.Struct("<HH"), struct.Struct("<H"), struct.Struct("<L")


@dataclass
class References:
    """What a request or report refers to. `failed`: each with its Failure Reason, None where it gives none."""

    transaction_uid: str = ""
    referenced: list[Reference] = field(default_factory=list)
    failed: list[tuple[Reference, int | None]] = field(default_factory=list)


def read_references(content: bytes, *, explicit: bool) -> References:
    """Read the Action Information of a request, or the Event Information of a report.

    Args:
        content: the data set as it came, little endian.
        explicit: whether VRs are explicit.

    Raises:
        Rejected: it is too long, refers to too much, is broken, or lacks a UID.
    """
    if len(content) > MOST_BYTES:
        raise Rejected(f"a storage commitment with more than {MOST_BYTES} bytes")
    found = References()
    for tag, begin, length in _elements(content, 0, len(content), explicit):
        if tag == _TRANSACTION:
            found.transaction_uid = _uid(content, begin, length)
        elif tag in (_REFERENCED, _FAILED):
            for item_begin, item_end in _items(content, begin, length, explicit):
                if len(found.referenced) + len(found.failed) == MOST_REFERENCES:
                    raise Rejected(f"a storage commitment with more than {MOST_REFERENCES} objects")
                reference, reason = _reference(content, item_begin, item_end, explicit)
                if tag == _REFERENCED:
                    found.referenced.append(reference)
                else:
                    found.failed.append((reference, reason))
    if not found.transaction_uid:
        raise Rejected("a storage commitment without a transaction UID")
    return found


def _reference(content: bytes, begin: int, end: int, explicit: bool) -> tuple[Reference, int | None]:
    class_uid = instance_uid = ""
    reason = None
    for tag, value, length in _elements(content, begin, end, explicit):
        if tag == _CLASS:
            class_uid = _uid(content, value, length)
        elif tag == _INSTANCE:
            instance_uid = _uid(content, value, length)
        elif tag == _REASON and length == 2:
            (reason,) = _SHORT_LENGTH.unpack_from(content, value)
    if not instance_uid:
        raise Rejected("a storage commitment with a reference that has no UID")
    return (class_uid, instance_uid), reason


def _elements(content: bytes, at: int, end: int, explicit: bool) -> Iterator[tuple[int, int, int]]:
    """Tag, begin and length of each element's value; a value of undefined length has that of what it holds."""
    while at < end:
        tag, length, at = _header(content, at, end, explicit)
        size = _undefined(content, at, end, explicit) if length == _UNDEFINED else length
        if at + size > end:
            raise Rejected("a malformed storage commitment: an element extends beyond its container")
        yield tag, at, size
        at += size


def _items(content: bytes, at: int, size: int, explicit: bool) -> Iterator[tuple[int, int]]:
    """Begin and end of the items of a sequence."""
    end = at + size
    while at < end:
        tag, length, at = _header(content, at, end, explicit)
        if tag == _END_OF_SEQUENCE:
            return
        if tag != _ITEM:
            raise Rejected("a malformed storage commitment: a sequence contains something other than items")
        item_size = _undefined(content, at, end, explicit) if length == _UNDEFINED else length
        if at + item_size > end:
            raise Rejected("a malformed storage commitment: an item extends beyond its sequence")
        delimiter_bytes = 8 if length == _UNDEFINED else 0
        yield at, at + item_size - delimiter_bytes
        at += item_size


def _undefined(content: bytes, begin: int, end: int, explicit: bool) -> int:
    """How long a sequence or item of undefined length is, its delimiter included."""
    at, depth = begin, 1
    while depth:
        tag, length, at = _header(content, at, end, explicit)
        if tag in (_END_OF_ITEM, _END_OF_SEQUENCE):
            depth -= 1
        elif length == _UNDEFINED:
            depth += 1
        else:
            at += length
    return at - begin


def _header(content: bytes, at: int, end: int, explicit: bool) -> tuple[int, int, int]:
    """Tag and length of an element or item, and where its value begins."""
    if at + 8 > end:
        raise Rejected("a malformed storage commitment: it is truncated")
    group, number = _TAG.unpack_from(content, at)
    tag = group << 16 | number
    vr = content[at + 4 : at + 6]
    if not explicit or group == 0xFFFE or not (vr.isalpha() and vr.isupper()):  # inside of UN, VRs are implicit
        return tag, _LONG_LENGTH.unpack_from(content, at + 4)[0], at + 8
    if vr not in LONG_VRS:
        return tag, _SHORT_LENGTH.unpack_from(content, at + 6)[0], at + 8
    if at + 12 > end:
        raise Rejected("a malformed storage commitment: it is truncated")
    return tag, _LONG_LENGTH.unpack_from(content, at + 8)[0], at + 12


def _uid(content: bytes, begin: int, length: int) -> str:
    """A UID without its padding; empty where there is none.

    Raises:
        Rejected: it is something else (PS3.5 section 9.1).
    """
    if length > _LONGEST_UID + 1:
        raise Rejected("a storage commitment with a UID that is too long")
    uid = content[begin : begin + length].split(b"\x00", 1)[0].strip()
    if uid and (len(uid) > _LONGEST_UID or not _UID.fullmatch(uid)):
        raise Rejected("a storage commitment with an invalid UID")
    return uid.decode("ascii")
