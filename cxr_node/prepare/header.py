"""Reads header values tolerantly: real headers break every rule of the standard."""

from __future__ import annotations

import math
import re
import struct
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from pydicom import Dataset
from pydicom.charset import python_encoding
from pydicom.errors import BytesLengthException
from pydicom.valuerep import PersonName

UNREADABLE = (
    *(ValueError, TypeError, OverflowError, NotImplementedError, AttributeError, KeyError, IndexError),
    *(OSError, struct.error),  # of a sequence whose items are cut off
    BytesLengthException,  # of a number with a byte too few
)
"""What pydicom raises when it reads a broken value, which it does on access."""


def value_of(ds: Dataset, keyword: str) -> Any:
    """The value of an attribute; None where it is absent or can't be read at all."""
    try:
        return ds.get(keyword)
    except UNREADABLE:
        return None


def values_of(ds: Dataset, keyword: str) -> list[Any]:
    """The values of an attribute, of whatever multiplicity; none where it is absent, empty or can't be read."""
    return as_list(value_of(ds, keyword))


def as_list(value: Any) -> list[Any]:
    """The values of an element's value, of whatever multiplicity; none where it is empty."""
    if value is None or value == "":
        return []
    is_one = isinstance(value, (str, bytes, Dataset, PersonName)) or not isinstance(value, Iterable)
    return [value] if is_one else list(value)


def first_of(ds: Dataset, keyword: str) -> Any:
    """The first value of an attribute, of whatever multiplicity; None where there is none."""
    return next(iter(values_of(ds, keyword)), None)


def text(ds: Dataset, keyword: str) -> str:
    """The first value of an attribute as text without outer spaces; empty where there is none."""
    value = first_of(ds, keyword)
    return "" if value is None else str(value).strip()


def folded(ds: Dataset, value: Any) -> str:
    """A value as text in capitals, without outer spaces and accents.

    A code string may have no letters but ASCII's (PS3.5 section 6.2) and is read as such; one that has others is decoded as its
    writer meant it: as UTF-8, or in the data set's character set.
    """
    written = str(value)
    if not written.isascii():
        written = _decoded(ds, written)
        bare = "".join(letter for letter in unicodedata.normalize("NFKD", written) if not unicodedata.combining(letter))
        written = unicodedata.normalize("NFC", bare)
    return written.strip().upper()


def _decoded(ds: Dataset, text: str) -> str:
    declared = [str(name) for name in values_of(ds, "SpecificCharacterSet")]
    encodings = [python_encoding[name] for name in declared if name in python_encoding]
    for encoding in ("utf-8", *encodings):
        with suppress(UnicodeError, LookupError):
            return text.encode("latin-1").decode(encoding)
    return text


def name_in(ds: Dataset) -> str:
    """Patient's Name as it is written, carets and all; empty where there is none.

    pydicom leaves the escape sequences of ISO 2022 IR 58 in the text.
    """
    return re.sub(r"\x1b[\x20-\x2f]+[\x30-\x7e]", "", str(value_of(ds, "PatientName") or "")).strip()


def numbers(ds: Dataset, keyword: str) -> list[float | None]:
    """The values of a number in the header, None for each that is no finite number; a decimal comma counts as a point."""
    return [_number(value) for value in values_of(ds, keyword)]


def number(ds: Dataset, keyword: str, default: float | None = None) -> Any:
    """The first value of a number in the header; the default where it is absent, empty or no finite number."""
    found = _number(first_of(ds, keyword))
    return default if found is None else found


def _number(value: Any) -> float | None:
    try:
        found = float(value.replace(",", ".") if isinstance(value, str) and value.count(",") == 1 else value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None
