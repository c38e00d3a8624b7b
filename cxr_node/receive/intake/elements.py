"""Finds a few elements in an encoded data set without building it, in bounded time and very little memory.

pydicom builds every sequence of undefined length on the way: a megabyte of empty items takes minutes and hundreds of megabytes.
It is also three times as slow for an ordinary header. The callers interpret the values.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Collection
from dataclasses import dataclass

from cxr_node.dicom.top_level import LONG_VRS

UNDEFINED = 0xFFFFFFFF
MOST_ELEMENTS = 200_000
"""Items included; those inside of what has a length are passed over with it. A structured report has some ten thousand."""
DEEPEST = 64
LONGEST_VALUE_BYTES = 1024
"""Limit of the requested values; the standard allows at most 64 characters."""

_ITEM, _END_OF_ITEM, _END_OF_SEQUENCE = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXELS = 0x7FE00008
"""Float, double float and integer pixel data are this and the next two."""
_SHORT = frozenset(
    (b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS", b"ST")
) | frozenset((b"TM", b"UI", b"UL", b"US"))


class Broken(Exception):  # noqa: N818 - becomes `Rejected`
    """The data set doesn't keep to its encoding."""


@dataclass
class _Frame:
    """What is being walked through: the data set, a sequence, one of its items, or fragments of an encapsulated value."""

    end: int
    """UNDEFINED: at its delimiter."""
    holds_items: bool = False
    are_fragments: bool = False
    explicit: bool = True
    wanted: bool = False


def find_elements(  # noqa: C901, PLR0912, PLR0915 - one pass over the bytes, its state in locals
    content: bytes | mmap.mmap,
    begin: int,
    *,
    explicit: bool,
    little_endian: bool,
    tags: Collection[int],
    inside: int,
    is_cut: bool = False,
    is_beginning: bool = False,
) -> tuple[dict[int, bytes], list[dict[int, bytes]], int]:
    """The values of some elements that come before the pixels.

    Args:
        content: what holds the data set.
        begin: where in it the data set begins.
        explicit: whether VRs are explicit. An element without one is taken for implicit all the same.
        little_endian: the byte order.
        tags: what to look for.
        inside: the tag of a sequence in whose items they are looked for too.
        is_cut: `content` may end anywhere: what goes beyond ends the search.
        is_beginning: `content` is the beginning of it all, and enough only if the pixels begin in it.

    Returns:
        the values at the top, those in each item of that sequence, and where the search ended.

    Raises:
        Broken: an element extends beyond its container, a delimiter is missing, a requested element occurs twice with
            different values or is too long, or there is more than anyone needs.

    Over 60 lines: one pass over the bytes, its state in locals.
    """
    order = "<" if little_endian else ">"
    tag_of, long_of, short_of = struct.Struct(f"{order}HH"), struct.Struct(f"{order}L"), struct.Struct(f"{order}H")
    top: dict[int, bytes] = {}
    items: list[dict[int, bytes]] = []
    size = len(content)
    stack = [_Frame(size, explicit=explicit, wanted=True)]
    found = top
    at = begin
    for _ in range(MOST_ELEMENTS):
        frame = stack[-1]
        while at == frame.end and len(stack) > 1:
            stack.pop()
            frame = stack[-1]
        if at + 8 > (frame.end if frame.end != UNDEFINED else size):
            if is_cut or (len(stack) == 1 and not is_beginning):
                return top, items, at
            raise Broken("it is truncated")
        group, number = tag_of.unpack_from(content, at)
        tag = group << 16 | number
        if frame.holds_items:
            (length,) = long_of.unpack_from(content, at + 4)
            at += 8
            if tag == _END_OF_SEQUENCE and frame.end == UNDEFINED:
                stack.pop()
            elif tag != _ITEM:
                raise Broken("a sequence contains something other than items")
            elif frame.are_fragments:
                at += length
                if at > size and not is_cut:
                    raise Broken("a fragment is cut off")
            else:
                if frame.wanted:
                    found = {}
                    items.append(found)
                # inside of UN, VRs are implicit (PS3.5 section 6.2.2), unless the writer didn't know that
                has_vr = frame.explicit or bytes(content[at + 4 : at + 6]) in LONG_VRS | _SHORT
                stack.append(_Frame(_end(at, length, frame, size, is_cut), explicit=has_vr, wanted=frame.wanted))
            continue
        if tag == _END_OF_ITEM and frame.end == UNDEFINED:
            stack.pop()
            at += 8
            continue
        if tag >= _PIXELS and len(stack) == 1:
            return top, items, at
        vr = bytes(content[at + 4 : at + 6]) if frame.explicit else b""
        if vr in LONG_VRS:
            if at + 12 > size:
                break
            (length,) = long_of.unpack_from(content, at + 8)
            at += 12
        elif vr.isalpha() and vr.isupper():
            (length,) = short_of.unpack_from(content, at + 6)
            at += 8
        else:
            vr = b""
            (length,) = long_of.unpack_from(content, at + 4)
            at += 8
        is_top = len(stack) == 1
        if length == UNDEFINED or (is_top and tag == inside and vr in (b"SQ", b"UN", b"")):
            # without a VR, encapsulated values can be told by nothing: only pixels have those, and they are the end
            are_items = vr in (b"SQ", b"UN", b"")
            end = UNDEFINED if length == UNDEFINED else _end(at, length, frame, size, is_cut)
            inner = _Frame(end, True, not are_items, frame.explicit and vr != b"UN", is_top and tag == inside)
            stack.append(inner)
            if len(stack) > DEEPEST:
                raise Broken("sequences are nested too deep")
            continue
        end = _end(at, length, frame, size, is_cut)
        if frame.wanted and tag in tags:
            if length > LONGEST_VALUE_BYTES:
                raise Broken("an identifier is too long")
            values, value = top if is_top else found, bytes(content[at:end])
            if values.setdefault(tag, value) != value:  # readers would disagree about which one holds
                raise Broken("an element occurs twice")
        at = end
    else:
        raise Broken("there are too many elements")
    if is_cut:
        return top, items, at
    raise Broken("it ends within an element")


def _end(at: int, length: int, frame: _Frame, size: int, is_cut: bool) -> int:
    """Where something of this length ends."""
    if length == UNDEFINED:
        return UNDEFINED
    most = frame.end if frame.end != UNDEFINED else size
    if at + length > most and not is_cut:
        raise Broken("an element extends beyond its container")
    return at + length
