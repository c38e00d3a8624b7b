"""Finds where the elements at the top of an encoded data set begin and end, without building it, in bounded time."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator

Content = bytes | mmap.mmap

MOST_ELEMENTS = 200_000
"""Items, fragments and what nests in sequences of undefined length included."""

LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
"""VRs whose length has 32 bits (PS3.5 section 7.1.2)."""
_ITEM, _END_OF_ITEM, _END_OF_SEQUENCE = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_DEEPEST = 64


def top_elements(content: Content, at: int, *, explicit: bool, little_endian: bool) -> Iterator[tuple[int, int, int]]:
    """Tag, beginning and end of each element at the top of a data set that begins at `at`.

    The last one ends where `content` does, unless something there is no element, or there are too many.
    """
    walk = _Walk(content, "<" if little_endian else ">")
    while at < len(content):
        try:
            tag, end = walk.element(at, explicit, 0)
        except (_Broken, struct.error):
            return
        yield tag, at, end
        at = end


class _Broken(Exception):  # noqa: N818 - ends the walk
    """What begins here is no element, or doesn't end in what holds it."""


class _Walk:
    def __init__(self, content: Content, order: str) -> None:
        self._content = content
        self._tag = struct.Struct(f"{order}HH")
        self._long, self._short = struct.Struct(f"{order}L"), struct.Struct(f"{order}H")
        self._left = MOST_ELEMENTS

    def element(self, at: int, explicit: bool, depth: int) -> tuple[int, int]:
        """Tag and end of what begins here."""
        self._left -= 1
        if self._left < 0 or depth > _DEEPEST:
            raise _Broken
        group, number = self._tag.unpack_from(self._content, at)
        if group == 0:  # of commands only, and what zeroes at the end of a file look like
            raise _Broken
        vr = bytes(self._content[at + 4 : at + 6]) if explicit and group != 0xFFFE else b""
        if vr in LONG_VRS:
            (length,) = self._long.unpack_from(self._content, at + 8)
            at += 12
        elif vr.isalpha() and vr.isupper():
            (length,) = self._short.unpack_from(self._content, at + 6)
            at += 8
        else:
            (length,) = self._long.unpack_from(self._content, at + 4)
            at += 8
        tag = group << 16 | number
        if length != _UNDEFINED:
            end = at + length
        elif tag == _ITEM:
            end = self._behind(_END_OF_ITEM, at, explicit, depth + 1)
        else:  # inside of UN, VRs are implicit (PS3.5 section 6.2.2)
            end = self._behind(_END_OF_SEQUENCE, at, explicit and vr != b"UN", depth + 1)
        if end > len(self._content):
            raise _Broken
        return tag, end

    def _behind(self, delimiter: int, at: int, explicit: bool, depth: int) -> int:
        """Where the items of a sequence, the fragments of pixels or the elements of an item that begin here are over."""
        while True:
            tag, at = self.element(at, explicit, depth)
            if tag == delimiter:
                return at
            if (tag == _ITEM) != (delimiter == _END_OF_SEQUENCE):
                raise _Broken
