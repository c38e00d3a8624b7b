"""What a compressed picture says of itself, read from its markers without decoding it.

Decoders written in C believe a codestream rather than the DICOM header, and some of them hang or end the whole process
over one that is damaged. What can be seen to be wrong never reaches them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pydicom import Dataset
from pydicom.encaps import get_frame

from cxr_node.errors import Rejected

DAMAGED = "The picture's data are damaged and can't be decoded."

_J2K_START = b"\xff\x4f\xff\x51"
"""SOC followed by SIZ (ISO/IEC 15444-1 A.4 and A.5)."""
_JPEG_START = b"\xff\xd8"
_END = b"\xff\xd9"
"""EOI of JPEG and JPEG-LS, EOC of JPEG 2000."""

_START_OF_FRAME = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
"""SOF0 to SOF15 without DHT, JPG and DAC (ISO/IEC 10918-1 table B.1), and SOF55 of JPEG-LS (ISO/IEC 14495-1 C.1.1)."""
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})


@dataclass(frozen=True)
class Codestream:
    """Size of a compressed picture, and whether its last marker is there."""

    rows: int
    columns: int
    samples_per_pixel: int
    bits: int
    complete: bool


def check_codestream(ds: Dataset) -> None:
    """Keep from the decoders what is cut short, or larger than the header says and they have room for.

    Args:
        ds: with encapsulated PixelData of one frame in JPEG, JPEG-LS, JPEG 2000 or HTJ2K.

    Raises:
        Rejected: the codestream is damaged or doesn't match the header.
    """
    try:
        codestream = read_codestream(get_frame(ds.PixelData, 0, number_of_frames=1))
    except Exception as error:  # a broken encapsulation raises in many ways
        raise Rejected(DAMAGED) from error
    if codestream is None:
        raise Rejected(DAMAGED)
    if not codestream.complete:
        raise Rejected("The picture's data are cut short, as if it was not sent completely.")
    if (codestream.rows, codestream.columns, codestream.samples_per_pixel) != (ds.Rows, ds.Columns, ds.SamplesPerPixel):
        raise Rejected("The compressed picture has another size than its header says.")
    if codestream.bits > ds.BitsAllocated:
        raise Rejected(DAMAGED)


def read_codestream(codestream: bytes) -> Codestream | None:
    """Read a JPEG, JPEG-LS, JPEG 2000 or HTJ2K codestream; None if it is none or its header is damaged."""
    complete = _END in codestream[-64:]  # what follows is padding, with 00 or FF; inside the coded data it can't occur
    try:
        if codestream.startswith(_J2K_START):
            right, bottom, left, top = struct.unpack(">4I", codestream[8:24])
            (samples,) = struct.unpack(">H", codestream[40:42])
            return Codestream(bottom - top, right - left, samples, (codestream[42] & 0x7F) + 1, complete)
        if codestream.startswith(_JPEG_START):
            place = _start_of_frame(codestream)
            bits, rows, columns, samples = struct.unpack(">B2HB", codestream[place + 4 : place + 10])
            return Codestream(rows, columns, samples, bits, complete)
    except (struct.error, IndexError):
        return None
    return None


def _start_of_frame(codestream: bytes) -> int:
    """Where the SOF marker is; IndexError if there is none."""
    place = 2
    while codestream[place] == 0xFF:
        marker = codestream[place + 1]
        if marker in _START_OF_FRAME:
            return place
        if marker == 0xFF:  # a fill byte
            place += 1
        elif marker in _WITHOUT_LENGTH:
            place += 2
        else:
            place += 2 + max(2, struct.unpack(">H", codestream[place + 2 : place + 4])[0])
    raise IndexError
