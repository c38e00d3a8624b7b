"""Search texts with the wildcard *, in a form that an index can answer."""

from __future__ import annotations

import re
import sys
from typing import Any

from sqlalchemy import Engine, or_


def matching(engine: Engine, column: Any, value: str) -> Any | None:
    """The condition that a column matches; None for an empty value, which matches everything.

    Case doesn't matter with a wildcard; but on SQLite, where only an exact beginning is found in an index, a text that ends in
    its only * is looked for as it is written, in capitals and in small letters.
    """
    if not value:
        return None
    if "*" not in value:
        return column == value
    if engine.dialect.name == "sqlite" and is_beginning(value):
        return begins_with(column, value, "sqlite")
    pattern = value.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("*", "%")
    return column.ilike(pattern, escape="\\")


def is_beginning(value: str) -> bool:
    """Whether a text ends in its only wildcard, and an index that is ordered by bytes can find what begins so."""
    return value.find("*") == len(value) - 1 > 0 and not set(value) & {"[", "]", "?", chr(sys.maxunicode)}


def begins_with(column: Any, value: str, dialect: str) -> Any:
    """The condition that a column begins with a text (see `is_beginning`) as written, in capitals or in small letters.

    On PostgreSQL the column's index needs the operator class varchar_pattern_ops.
    """
    spellings = dict.fromkeys((value, value.upper(), value.lower()))
    if dialect == "sqlite":
        return or_(*(column.bool_op("GLOB")(one) for one in spellings))
    beginnings = [one.removesuffix("*") for one in spellings]
    return or_(*(column.bool_op("~>=~")(one) & column.bool_op("~<~")(_after_all_that_begin(one)) for one in beginnings))


def _after_all_that_begin(beginning: str) -> str:
    """The first text, by bytes of UTF-8, that is behind every text with this beginning."""
    after_last = ord(beginning[-1]) + 1
    return beginning[:-1] + chr(0xE000 if 0xD800 <= after_last < 0xE000 else after_last)


def as_regex(value: str) -> re.Pattern[str]:
    """What a text with wildcards matches whole, in capitals or small letters.

    Each part between two wildcards is taken where it is found first, for good: with ".*" alone, many wildcards take years.
    """
    first, *others = map(re.escape, value.split("*"))
    if not others:
        return re.compile(first, re.IGNORECASE | re.DOTALL)
    between = "".join(f"(?>.*?{part})" for part in others[:-1] if part)
    return re.compile(f"{first}{between}.*{others[-1]}", re.IGNORECASE | re.DOTALL)
