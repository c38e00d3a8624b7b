"""Lookup tables of the Modality LUT and VOI LUT modules, read from a header's item."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset


@dataclass(frozen=True)
class LookupTable:
    """A table (PS3.3 C.11.1.1.1 and C.11.2.1.1); values below and above it get its first and last entry.

    entries: float64 (N,).
    first_mapped: the input that gets the first entry.
    maximum: the largest entry that the table's bit depth allows.
    """

    entries: NDArray[np.float64]
    first_mapped: int
    maximum: float

    @classmethod
    def read(cls, item: Dataset, ds: Dataset, *, signed_input: bool = False) -> LookupTable | None:
        """The table in an item of ModalityLUTSequence or VOILUTSequence of `ds`; None if it is empty or damaged.

        `signed_input`: the values looked up may be negative; then a first mapped value that was written unsigned is not.
        """
        descriptor, data = item.get("LUTDescriptor"), item.get("LUTData")
        if not descriptor or len(descriptor) != 3 or data is None:
            return None
        count, first_mapped, bits = int(descriptor[0]) or 2**16, int(descriptor[1]), int(descriptor[2])
        if (signed_input or ds.get("PixelRepresentation") == 1) and first_mapped >= 2**15:
            first_mapped -= 2**16
        entries = _entries(data, count, ds)
        if entries.size == 0 or bits < 1:
            return None
        # Some writers say 16 bits and mean fewer, others the reverse: the entries are believed where they are larger.
        return cls(entries, first_mapped, max(2.0**bits - 1, float(entries.max())))

    def raw(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Entries as they stand, for the Modality LUT."""
        index = np.clip(np.rint(values) - self.first_mapped, 0, self.entries.size - 1)
        return np.asarray(self.entries[index.astype(np.intp)])

    def scaled(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Entries as shares of the largest possible one, 0..1, for the VOI LUT."""
        return self.raw(values) / self.maximum


def first_item(ds: Dataset, keyword: str) -> Dataset | None:
    """The first item of a sequence, None if it is absent or empty."""
    sequence = ds.get(keyword)
    return sequence[0] if sequence else None


def _entries(data: Any, count: int, ds: Dataset) -> NDArray[np.float64]:
    if not isinstance(data, (bytes, bytearray)):
        return np.atleast_1d(np.asarray(data, np.float64)).ravel()[:count]
    if count <= len(data) < 2 * count:  # entries of 8 bits, two to a word (PS3.3 C.11.1.1.1)
        return np.frombuffer(data, np.uint8)[:count].astype(np.float64)
    little_endian = ds.original_encoding[1] is not False
    words = np.frombuffer(data[: len(data) // 2 * 2], "<u2" if little_endian else ">u2")
    return words[:count].astype(np.float64)
