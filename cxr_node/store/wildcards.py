"""Search texts with the wildcard *, in a form that an index can answer."""

from __future__ import annotations

import re
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
    if engine.dialect.name == "sqlite" and value.find("*") == len(value) - 1 and len(value) > 1 and not set(value) & set("[]?"):
        return or_(*(column.op("GLOB")(text) for text in dict.fromkeys((value, value.upper(), value.lower()))))
    pattern = value.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("*", "%")
    return column.ilike(pattern, escape="\\")


def as_regex(value: str) -> re.Pattern[str]:
    """What a text with wildcards matches, in capitals or small letters."""
    return re.compile(".*".join(map(re.escape, value.split("*"))), re.IGNORECASE | re.DOTALL)
