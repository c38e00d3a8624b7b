"""The history of a study or a patient in sentences: what happened, when, and by whom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from cxr_node.audit.events import form_of

_SOMEBODY = "somebody unknown"
_BAD = {"failure": "It failed", "rejected": "It was rejected"}
_SAID = ("failed", "rejected", "refused", "could not")
"""A phrase with one of these says the outcome itself; only the reason follows it."""
_LONGEST_DETAIL = 300


def sentences(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """A sentence for each row of the audit log, in their order; times are UTC. What is the same again is counted."""
    before: tuple[str, str, Mapping[str, Any]] | None = None
    count = 0
    for row in rows:
        told = _told(row)
        rest = _rest(row, told)
        if before is not None and (told, rest) == before[:2]:
            count += 1
            continue
        if before is not None:
            yield _sentence(*before, count)
        before, count = (told, rest, row), 1
    if before is not None:
        yield _sentence(*before, count)


def _sentence(told: str, rest: str, row: Mapping[str, Any], count: int) -> str:
    at = datetime.fromtimestamp(row["at"], UTC).strftime("%Y-%m-%d %H:%M:%S")
    times = f" ({count} times, the first then)" if count > 1 else ""
    return f"{at}: {told[0].upper()}{told[1:]}{times}.{rest}"


def _told(row: Mapping[str, Any]) -> str:
    told = form_of(row["event"]).told.format(user=row["user"] or _SOMEBODY)
    return f"{told} from {row['host']}" if row["host"] and row["user"] else told


def _rest(row: Mapping[str, Any], told: str) -> str:
    detail = row["detail"].strip().rstrip(".")
    if len(detail) > _LONGEST_DETAIL:
        detail = detail[:_LONGEST_DETAIL] + "…"
    bad = _BAD.get(row["outcome"], "")
    if bad and any(word in told for word in _SAID):
        return f" Reason: {detail}." if detail else ""
    if bad and detail:
        return f" {bad}: {detail}."
    if bad:
        return f" {bad}."
    return f" ({detail}.)" if detail else ""
