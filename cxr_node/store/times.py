"""Times as people and programs write them."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from cxr_node.errors import CxrNodeError


def parse_time(text: str, option: str) -> float | None:
    """A time that a person gave, as UTC seconds since the epoch; None for none. Without an offset it is UTC.

    Raises:
        CxrNodeError: it is no time.
    """
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise CxrNodeError(
            f"{option} {text!r} is no time: write 2026-11-28, 2026-11-28T14:30 (both UTC), or 2026-11-28T15:30+01:00."
        ) from error
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def iso(seconds: float | None) -> str | None:
    """A time for programs: ISO 8601 in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def iso_to_the_millisecond(seconds: float) -> str:
    """A time for programs, never later than it was: given to `--since` again, it finds what has it."""
    return datetime.fromtimestamp(math.floor(seconds * 1000) / 1000, UTC).isoformat(timespec="milliseconds")
