"""Reads the header of a compressed codestream from its markers, without decoding it.

Decoders written in C trust the codestream more than the DICOM header, and some hang or end the process on a damaged one. This
module rejects what is visibly wrong before they see it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import accumulate

from pydicom import Dataset
from pydicom.encaps import generate_fragments
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

from cxr_node.errors import Rejected

DAMAGED = "The picture's data are damaged and can't be decoded."
TRUNCATED = "The pixel data are truncated: the image may not have been sent completely."

_J2K_START = b"\xff\x4f\xff\x51"
"""SOC followed by SIZ (ISO/IEC 15444-1 A.4 and A.5)."""
_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "
_HTJ2K = (HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K)
_BASELINE, _LOSSLESS, _JPEG_LS = 0xC0, 0xC3, 0xF7
"""Markers of a start of frame: SOF0, SOF3 and SOF55."""
_JPEG_START = b"\xff\xd8"
_STARTS = (_J2K_START, _JP2_SIGNATURE, _JPEG_START)
_END = b"\xff\xd9"
"""EOI of JPEG and JPEG-LS, EOC of JPEG 2000."""

_CODING_STYLE = 0x52
"""COD, the coding style of a JPEG 2000 codestream."""
_MOST_SCANS = 100
"""Of a JPEG; a progressive one has some ten, a restart interval none of its own."""
_MOST_TILES, _MOST_PACKETS, _MOST_BLOCKS = 16_384, 1_000_000, 1_000_000
"""20 million pixels in tiles of 256 × 256 are 306, in code blocks of 32 × 32 are 20,000."""

_RLE_HEADER_BYTES = 64
"""The number of segments and 15 offsets, of which that many are used."""

_START_OF_FRAME = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
"""SOF0 to SOF15 without DHT, JPG and DAC (ISO/IEC 10918-1 table B.1), and SOF55 of JPEG-LS (ISO/IEC 14495-1 C.1.1)."""
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})


@dataclass(frozen=True)
class Codestream:
    """Size of a compressed picture, and whether its end marker is present."""

    rows: int
    columns: int
    samples_per_pixel: int
    bits: int
    complete: bool


def only_frame(ds: Dataset) -> bytes:
    """The one frame of encapsulated PixelData: all fragments, whatever an offset table says, without the boxes of JP2.

    PS3.5 8.2.4 forbids the boxes, but some machines send them.

    Raises:
        Rejected: there is none, or the encapsulation is broken.
    """
    try:
        content = ds.PixelData
        fragments = list(generate_fragments(content))
        start = 0 if fragments and fragments[0].startswith(_STARTS) else 1  # the first is the Basic Offset Table, or should be
        frame = b"".join(fragments[start:])
    except Exception as error:  # a broken encapsulation raises in many ways
        raise Rejected(DAMAGED) from error
    if not frame:
        raise Rejected(DAMAGED)
    return _codestream_of_jp2(frame)


def syntax_of(frame: bytes, declared: UID) -> UID:
    """The actual transfer syntax of a frame: that of its codestream, if it differs in family from the declared one."""
    if frame.startswith(_J2K_START):
        if _is_high_throughput(frame):
            return declared if declared in _HTJ2K else HTJ2K
        return declared if declared in (JPEG2000Lossless, JPEG2000) else JPEG2000
    if frame.startswith(_JPEG_START):
        try:
            place = _start_of_frame(frame)
        except (struct.error, IndexError):
            return declared
        kind, bits = frame[place + 1], frame[place + 4]
        if kind == _LOSSLESS:
            return declared if declared in (JPEGLossless, JPEGLosslessSV1) else JPEGLossless
        if kind == _JPEG_LS:
            return declared if declared in (JPEGLSLossless, JPEGLSNearLossless) else JPEGLSLossless
        return JPEGBaseline8Bit if kind == _BASELINE and bits == 8 else JPEGExtended12Bit
    return declared


def check_codestream(ds: Dataset, frame: bytes) -> None:
    """Reject a codestream that is truncated, or larger than the header says: decoders could crash on it.

    Args:
        ds: the header.
        frame: in JPEG, JPEG-LS, JPEG 2000 or HTJ2K.

    Raises:
        Rejected: the codestream is damaged or doesn't match the header.
    """
    codestream = read_codestream(frame)
    if codestream is None:
        raise Rejected(DAMAGED)
    if not codestream.complete:
        raise Rejected(TRUNCATED)
    if (codestream.rows, codestream.columns, codestream.samples_per_pixel) != (ds.Rows, ds.Columns, ds.SamplesPerPixel):
        raise Rejected("The size of the compressed picture differs from its header.")
    if codestream.bits > ds.BitsAllocated:
        raise Rejected(DAMAGED)
    if not _is_of_reasonable_make(frame):
        raise Rejected("The picture has more compressed parts than any radiograph.")


def rle_in_order(frame: bytes) -> bytes:
    """A frame of RLE Lossless (PS3.5 G.5) with its segments one after another behind the header, wherever they lay.

    Decoders differ in what they put up with: a gap behind the header, offsets behind those that are used.

    Raises:
        Rejected: a segment lies nowhere.
    """
    count, *offsets = struct.unpack("<16L", frame[:_RLE_HEADER_BYTES].ljust(_RLE_HEADER_BYTES, b"\0"))
    begins = offsets[:count]
    ends = [min((other for other in begins if other > begin), default=len(frame)) for begin in begins]
    if len(set(begins)) != count or not all(_RLE_HEADER_BYTES <= begin < len(frame) for begin in begins):
        raise Rejected(DAMAGED)
    segments = [frame[begin:end] for begin, end in zip(begins, ends, strict=True)]
    moved = list(accumulate(map(len, segments[:-1]), initial=_RLE_HEADER_BYTES))
    return struct.pack("<16L", count, *moved, *[0] * (15 - count)) + b"".join(segments)


def read_codestream(codestream: bytes) -> Codestream | None:
    """Read a JPEG, JPEG-LS, JPEG 2000 or HTJ2K codestream; None if it is something else, or its header is damaged."""
    # what follows the end is padding, mostly with 00 or FF; inside the coded data the marker can't occur
    complete = _END in codestream[-64:] or codestream.rstrip(b"\x00\xff").endswith(_END)
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


def _is_of_reasonable_make(frame: bytes) -> bool:
    """Whether a codestream has no more parts than a decoder gets through in reasonable memory and time.

    Each tile, code block and packet of JPEG 2000 (ISO/IEC 15444-1 A.5 and A.6) costs some hundred bytes of memory, each scan of
    JPEG (ISO/IEC 10918-1 B.2.3) a passage through the whole picture; the file that says so may be tiny.
    """
    if not frame.startswith(_J2K_START):
        return frame.count(b"\xff\xda") <= _MOST_SCANS
    right, bottom, _, _, width, height = struct.unpack(">6I", frame[8:32])
    if width == 0 or height == 0:
        return False
    tiles = -(-right // width) * -(-bottom // height)
    place, layers, levels, block = 2, 1, 0, 4096
    while place + 4 <= len(frame) and frame[place] == 0xFF and frame[place + 1] not in (0x90, 0x93):
        (length,) = struct.unpack(">H", frame[place + 2 : place + 4])
        if frame[place + 1] == _CODING_STYLE and place + 12 <= len(frame):
            layers, _, levels, wide, high = struct.unpack(">HBBBB", frame[place + 6 : place + 12])
            block = 1 << ((wide & 15) + (high & 15) + 4)
        place += 2 + length
    packets = tiles * layers * (levels + 1)
    blocks = right * bottom // block
    return bool(tiles <= _MOST_TILES and packets <= _MOST_PACKETS and blocks <= _MOST_BLOCKS)


def _codestream_of_jp2(frame: bytes) -> bytes:
    """The Contiguous Codestream box of a JP2 file (ISO/IEC 15444-1 annex I); the frame itself if it is none."""
    if not frame.startswith(_JP2_SIGNATURE):
        return frame
    place = 0
    while place + 8 <= len(frame):
        (length,) = struct.unpack(">I", frame[place : place + 4])
        kind, header = frame[place + 4 : place + 8], 8
        if length == 1 and place + 16 <= len(frame):
            (length,) = struct.unpack(">Q", frame[place + 8 : place + 16])
            header = 16
        end = len(frame) if length == 0 else place + length
        if kind == b"jp2c":
            return frame[place + header : end]
        if end <= place:
            break
        place = end
    raise Rejected(DAMAGED)


def _is_high_throughput(frame: bytes) -> bool:
    """Whether a JPEG 2000 codestream's main header has CAP, which only part 15 (HTJ2K) asks for, with its bit set."""
    place = 2
    while place + 4 <= len(frame) and frame[place] == 0xFF:
        marker = frame[place + 1]
        if marker in (0x90, 0x93):  # SOT, SOD: the main header is over
            break
        (length,) = struct.unpack(">H", frame[place + 2 : place + 4])
        if marker == 0x50:
            (capabilities,) = struct.unpack(">I", frame[place + 4 : place + 8].ljust(4, b"\0"))
            return bool(capabilities & (1 << 17))  # Pcap of part 15, counted from the most significant bit
        place += 2 + length
    return False


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
