"""The size that a compressed picture says it has, read from its first bytes without decoding it."""

from __future__ import annotations

import struct

_J2K_START = b"\xff\x4f\xff\x51"
"""SOC followed by SIZ (ISO/IEC 15444-1 A.4 and A.5)."""

_JPEG_START = b"\xff\xd8"
_START_OF_FRAME = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
"""SOF0 to SOF15 without DHT, JPG and DAC (ISO/IEC 10918-1 table B.1), and SOF55 of JPEG-LS (ISO/IEC 14495-1 C.1.1)."""
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})


def codestream_shape(codestream: bytes) -> tuple[int, int] | None:
    """Rows and columns of a JPEG, JPEG-LS, JPEG 2000 or HTJ2K codestream; None for another kind or a broken one."""
    if codestream.startswith(_J2K_START) and len(codestream) >= 24:
        right, bottom, left, top = struct.unpack(">4I", codestream[8:24])
        return bottom - top, right - left
    if not codestream.startswith(_JPEG_START):
        return None
    place = 2
    while place + 9 <= len(codestream) and codestream[place] == 0xFF:
        marker = codestream[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
        elif marker in _START_OF_FRAME:
            rows, columns = struct.unpack(">2H", codestream[place + 5 : place + 9])
            return rows, columns
        elif marker in _WITHOUT_LENGTH:
            place += 2
        else:
            place += 2 + int(struct.unpack(">H", codestream[place + 2 : place + 4])[0])
    return None
