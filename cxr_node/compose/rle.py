"""RLE Lossless (PS3.5 annex G) of masks, whose rows are a few long runs.

A general encoder processes every byte; this one works on runs and takes a tenth of the time (`benchmarks/compose.py`).
"""

from __future__ import annotations

import struct
from functools import cache

import numpy as np
from numpy.typing import NDArray


def encode_masks(labels: NDArray[np.uint8], count: int) -> list[bytes]:
    """For each of the labels 1 to `count` a frame of 8 bits as RLE: 255 where the label is, 0 elsewhere.

    Args:
        labels: uint8 (rows, columns).
        count: of the frames.

    Returns:
        for each the header of 64 bytes and the one segment, of even length; no run passes the end of a row (PS3.5 G.3.1).
    """
    columns = labels.shape[1]
    values = labels.ravel()
    begins = values[1:] != values[:-1]
    begins[columns - 1 :: columns] = True
    starts = np.concatenate(([0], np.flatnonzero(begins) + 1))
    values, begins_row = values[starts], starts % columns == 0
    frames = []
    for label in range(1, count + 1):
        mask = values == label
        kept = begins_row | (mask != np.roll(mask, 1))
        lengths = np.diff(starts[kept], append=labels.size)
        encoded = b"".join(map(_run, lengths.tolist(), (mask[kept] * 255).tolist()))
        frames.append(struct.pack("<16L", 1, 64, *[0] * 14) + encoded + b"\0" * (len(encoded) % 2))
    return frames


@cache
def _run(length: int, value: int) -> bytes:
    """A run as replicate runs of at most 128 bytes, and a literal of what is left if it is one byte (PS3.5 G.3.2)."""
    whole, rest = divmod(length, 128)
    tail = b"" if not rest else bytes((0, value)) if rest == 1 else bytes((257 - rest, value))
    return bytes((129, value)) * whole + tail
