"""Which bits of a word hold the stored value (PS3.3 C.7.6.3.1, PS3.5 8.1.1): some headers state too few, or the wrong ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

_ROWS_COMPARED = 512


def unused_low_bits(ds: Dataset) -> int:
    """Bits below the stored ones: 0 since HighBit has to be BitsStored - 1; older images may lie higher in their word."""
    high_bit = ds.get("HighBit")
    if high_bit is None or not ds.BitsStored <= high_bit + 1 <= ds.BitsAllocated:
        return 0
    return int(high_bit) + 1 - int(ds.BitsStored)


def shifted(pixels: NDArray[Any], shift: int, bits: int, *, is_signed: bool) -> NDArray[Any]:
    """Stored values that lie above so many unused bits of their words."""
    if not is_signed and pixels.max() < 1 << bits and (pixels & ((1 << shift) - 1)).any():
        return pixels  # they lie at the lower end after all: HighBit is wrong
    return _lowest_bits(pixels >> shift, bits, is_signed=is_signed)


def _lowest_bits(pixels: NDArray[Any], bits: int, *, is_signed: bool) -> NDArray[Any]:
    lowest = pixels & ((1 << bits) - 1)
    return lowest - ((lowest >> (bits - 1)) << bits) if is_signed else lowest


def without_unused_bits(pixels: NDArray[Any], bits: int, *, is_signed: bool) -> NDArray[Any]:
    """Stored values without what else lies in their words, such as an overlay; or as they are, if they need those bits.

    BitsStored may be too small. Values that are cut then jump from the highest to the lowest, and neighbours differ more than
    they really do; with an overlay or noise above them it is the other way round.
    """
    lowest = _lowest_bits(pixels, bits, is_signed=is_signed)
    if np.array_equal(lowest, pixels):
        return pixels
    return pixels if _variation(pixels) < _variation(lowest) else lowest


def _variation(pixels: NDArray[Any]) -> float:
    """How much neighbours in a row differ, on average."""
    rows = pixels[:: max(1, pixels.shape[0] // _ROWS_COMPARED)].astype(np.int64)
    return float(np.abs(np.diff(rows, axis=1)).mean()) if pixels.shape[1] > 1 else 0.0
