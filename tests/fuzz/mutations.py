"""Breaks bytes in the ways that break parsers."""

from __future__ import annotations

import struct
from random import Random

_LENGTHS = (0, 1, 2, 3, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
_PIECES = (
    b"\xfe\xff\x00\xe0\xff\xff\xff\xff",  # item of undefined length, item delimiter, sequence delimiter
    b"\xfe\xff\x0d\xe0\x00\x00\x00\x00",
    b"\xfe\xff\xdd\xe0\x00\x00\x00\x00",
    b"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff",
    b"\x09\x00\x10\x00LO\x06\x00MAKER ",
    b"\x09\x00\x01\x10UN\x00\x00\xff\xff\xff\xff",
    b"\x08\x00\x18\x00UI\x10\x00../../etc/passwd",
    b"\x10\x00\x10\x00PN\x0a\x00A^B\x00\x1b[31m\x07",
    b"\x28\x00\x10\x00US\x02\x00\xff\xff\x28\x00\x11\x00US\x02\x00\xff\xff",
    b"\xff\xff\xff\xff",
    b"\x00" * 16,
)


def mutated(content: bytes, random: Random, others: list[bytes]) -> bytes:
    """`content` with a few things wrong; `others`: what it may be crossed with."""
    broken = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        at = random.randrange(len(broken) + 1)
        match random.randrange(10):
            case 0 | 1 if broken:
                broken[at % len(broken)] ^= 1 << random.randrange(8)
            case 2 if broken:
                broken[at % len(broken)] = random.randrange(256)
            case 3:
                del broken[at:]
            case 4:
                del broken[at : at + random.randint(1, 16)]
            case 5:
                broken[at:at] = random.randbytes(random.randint(1, 32))
            case 6:
                form = random.choice(("<L", ">L", "<H", ">H"))
                value = random.choice(_LENGTHS) & (0xFFFFFFFF if form[1] == "L" else 0xFFFF)
                broken[at : at + struct.calcsize(form)] = struct.pack(form, value)
            case 7:
                broken[at:at] = random.choice(_PIECES) * random.choice((1, 1, 1, 2, 100))
            case 8:
                other = random.choice(others)
                start = random.randrange(len(other) + 1)
                broken[at:] = other[start:]
            case _:
                end = at + random.randint(1, 64)
                broken[at:at] = broken[at:end]
    return bytes(broken)
