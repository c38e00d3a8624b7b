"""Lookup tables of the Modality LUT and VOI LUT modules, read from a header's item."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

_MOST_BITS = 16
_FULL = 0.9
"""Entries that reach this fraction of a bit depth's range were written for that depth."""


@dataclass(frozen=True)
class LookupTable:
    """A table (PS3.3 C.11.1.1.1 and C.11.2.1.1); values below and above it get its first and last entry.

    entries: float64 (N,).
    first_mapped: the input that gets the first entry.
    bits: of an entry, as far as descriptor and entries agree.
    """

    entries: NDArray[np.float64]
    first_mapped: int
    bits: int

    @classmethod
    def read(cls, item: Dataset, ds: Dataset, *, signed_input: bool = False) -> LookupTable | None:
        """The table in an item of ModalityLUTSequence or VOILUTSequence of `ds`; None if it is empty or damaged: what it lacks
        of the entries that its descriptor counts isn't known.

        `signed_input`: the values looked up may be negative; then a first mapped value that was written unsigned is not.
        """
        try:
            count, first_mapped, bits = (int(value) for value in item.get("LUTDescriptor") or ())
            entries = _entries(item.get("LUTData"), count or 2**16, ds)
        except (TypeError, ValueError, OverflowError):
            return None
        if (signed_input or ds.get("PixelRepresentation") == 1) and first_mapped >= 2**15:
            first_mapped -= 2**16
        if entries.size < (count or 1) or not 0 <= entries.min() <= entries.max() < 2**_MOST_BITS:
            return None
        return cls(entries, first_mapped, _bits(bits, int(entries.max())))

    def raw(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Entries as they stand, for the Modality LUT."""
        index = np.clip(np.rint(values) - self.first_mapped, 0, self.entries.size - 1)
        return np.asarray(self.entries[index.astype(np.intp)])

    def scaled(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Entries as shares of the largest possible one, 0..1, for the VOI LUT."""
        return self.raw(values) / float(2**self.bits - 1)


def items_of(ds: Dataset, keyword: str) -> Iterator[Dataset]:
    """The items of a sequence; none where it is absent, empty, or something else."""
    sequence = ds.get(keyword)
    if isinstance(sequence, (list, tuple)) or hasattr(sequence, "__iter__"):
        yield from (item for item in sequence if isinstance(item, Dataset))


def _bits(said: int, largest: int) -> int:
    """Bits of an entry.

    Some systems write 16 and use fewer, as Agfa CRs do, others the reverse. The entries decide if they are larger, if they fill
    a smaller depth, and if the descriptor leaves more than two bits unused.
    """
    held = max(1, largest.bit_length())
    if held >= said or said > _MOST_BITS:
        return held
    return held if said - held >= 2 or largest >= _FULL * (2**held - 1) else said


def _entries(data: Any, count: int, ds: Dataset) -> NDArray[np.float64]:
    if data is None:
        return np.zeros(0)
    if not isinstance(data, (bytes, bytearray)):
        values = np.atleast_1d(np.asarray(data, np.float64)).ravel()[:count]
        return np.where(values < 0, values + 2**16, values)  # read as signed
    if count <= len(data) < 2 * count:  # entries of 8 bits, two to a word (PS3.3 C.11.1.1.1)
        return np.frombuffer(data, np.uint8)[:count].astype(np.float64)
    little_endian = ds.original_encoding[1] is not False
    words = np.frombuffer(data[: len(data) // 2 * 2], "<u2" if little_endian else ">u2")
    return words[:count].astype(np.float64)
