"""Destinations, senders and results without a destination for `status`, in plain SQL.

Health checks run it twice a minute, so this module needs no SQLAlchemy (see `Query`).
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from cxr_node.records import REPORT_CLASS_NAMES, DeliveryState, JobState, ResultKind, answer_of

# ruff: noqa: S608 - what is put into SQL here are names of states and events

Query = Callable[..., list[tuple[Any, ...]]]
"""Runs SQL with parameters written `:name` and given by name, and returns the rows."""

_REMEMBERED_S = 7 * 86400.0
_OPEN_STATES = (DeliveryState.WAITING, DeliveryState.SENDING, DeliveryState.COMMITTING)
_OPEN = ", ".join(f"'{state}'" for state in _OPEN_STATES)
_FAILURES = "'result-delayed', 'result-held', 'result-not-kept'"
LAST_FAILURE = (
    "SELECT at, detail FROM audit WHERE id = (SELECT id FROM audit "
    f'WHERE at >= :since AND event IN ({_FAILURES}) AND "user" = :name ORDER BY at DESC LIMIT 1)'
)
"""The inner query is answered from an index alone (ix_audit_failures)."""


def by_destination(query: Query) -> dict[str, dict[str, Any]]:
    """For each destination that ever had a delivery: how many are in each state, since when the oldest waits, the last that was
    sent, and the last failure. Times are UTC seconds since the epoch, or None where there is none.
    """
    found: dict[str, dict[str, Any]] = {}
    sql = (
        "SELECT destination, state, count(*), min(created_at), max(sent_at), max(failed_at) FROM deliveries "
        "GROUP BY destination, state"
    )
    for name, state, count, oldest, sent, failed in query(sql):
        new: dict[str, Any] = {"states": {}, "oldest_waiting_at": None, "last_sent_at": None, "last_error_at": None}
        one = found.setdefault(name, new)
        one["states"][state] = count
        if state in _OPEN_STATES:
            one["oldest_waiting_at"] = min(oldest, one["oldest_waiting_at"] or oldest)
        one["last_sent_at"] = max(sent or 0, one["last_sent_at"] or 0) or None
        one["last_error_at"] = max(failed or 0, one["last_error_at"] or 0) or None
    for name, one in found.items():
        one.update(_last_error(query, name, one["last_error_at"]))
    return found


def _last_error(query: Query, destination: str, failed_at: float | None) -> dict[str, Any]:
    """What a destination last failed with: of what waits for it now, else of what the audit log has of the last week.

    When that was, each attempt at a delivery tells (`failed_at`); the log has the first and the last of each, and reports of
    storage commitment that say no.
    """
    events = query(
        LAST_FAILURE,
        since=time.time() - _REMEMBERED_S,  # the log may be kept forever
        name=destination,
    )
    waiting = query(
        f"SELECT reason FROM deliveries WHERE destination = :name AND state IN ({_OPEN}, '{DeliveryState.HELD}') "
        "AND reason != '' ORDER BY coalesce(failed_at, 0) DESC, attempts DESC, id DESC LIMIT 1",
        name=destination,
    )
    at, detail = events[0] if events else (None, "")
    error = waiting[0][0] if waiting else detail
    return {"last_error": error, "last_error_at": max(at or 0, failed_at or 0) or None, "is_failing": bool(waiting)}


def reports_owed(query: Query) -> list[dict[str, Any]]:
    """Reports of storage commitment that modalities have not taken yet, by modality and state; the oldest in UTC seconds."""
    sql = (
        "SELECT ae_title, host, state, count(*), min(created_at) FROM commitment_reports "
        f"WHERE state IN ('{DeliveryState.WAITING}', '{DeliveryState.HELD}', 'asked') "
        "GROUP BY ae_title, host, state ORDER BY 4 DESC"
    )
    keys = ("ae_title", "host", "state", "count", "oldest_at")
    return [dict(zip(keys, row, strict=True)) for row in query(sql)]


def by_sender(query: Query, since: float) -> dict[str, dict[str, Any]]:
    """For each AE title that sent something: instances received, when it was last seen, what was refused since, and why.

    Refusals are counted by day (`refusals`): those of the day of `since` count from its beginning.
    """
    found: dict[str, dict[str, Any]] = {}

    def entry(name: str, seen_at: float) -> dict[str, Any]:
        new: dict[str, Any] = {
            "received": 0,
            "last_received_at": None,
            "last_seen_at": seen_at,
            "refused": 0,
            "refused_by_reason": {},
        }
        return found.setdefault(name, new)

    for name, count, last in query(
        "SELECT calling_ae_title, count(*), max(received_at) FROM instances GROUP BY calling_ae_title"
    ):
        entry(name, last).update({"received": count, "last_received_at": last})
    sql = "SELECT sender, reason, sum(count), max(last_at) FROM refusals WHERE day >= :day GROUP BY sender, reason"
    for name, reason, count, last in query(sql, day=int(since // 86400)):
        one = entry(name, last)
        one["refused"] += int(count)  # PostgreSQL's sum is a Decimal
        one["refused_by_reason"][reason] = int(count)
        one["last_seen_at"] = max(one["last_seen_at"], last)
    return found


def report_classes_sent(query: Query) -> dict[str, dict[str, int]]:
    """How many reports went out as which class of structured report, by destination and the class's name."""
    sql = (
        "SELECT d.destination, CASE WHEN d.sent_sop_class_uid != '' THEN d.sent_sop_class_uid ELSE r.sop_class_uid END "
        "AS class_uid, count(*) FROM deliveries d JOIN results r ON r.id = d.result_id "
        f"WHERE r.kind = '{ResultKind.REPORT}' AND d.sent_at IS NOT NULL GROUP BY d.destination, class_uid ORDER BY d.destination"
    )
    found: dict[str, dict[str, int]] = {}
    for destination, uid, count in query(sql):
        found.setdefault(destination, {})[REPORT_CLASS_NAMES.get(uid, str(uid))] = count
    return found


def last_day(query: Query) -> dict[str, Any]:
    """Of the jobs done in the last 24 hours: `answers`, how often each was given, and `warnings` with their `count`."""
    sql = f"SELECT findings FROM jobs WHERE state = '{JobState.DONE}' AND finished_at >= :since"
    found = [json.loads(text) for (text,) in query(sql, since=time.time() - 86400.0)]
    answers = Counter(answer_of(findings)["answer"] for findings in found)
    warnings = Counter(warning for findings in found for warning in findings.get("warnings", []))
    return {
        "answers": dict(answers.most_common()),
        "warnings": [{"count": count, "warning": warning} for warning, count in warnings.most_common()],
    }


def without_destination(query: Query) -> list[dict[str, Any]]:
    """Analysed images whose results have no delivery at all: `sender` and `count`, the most first."""
    rows = query(
        "SELECT i.calling_ae_title, count(*) FROM jobs j JOIN instances i ON i.id = j.instance_id "
        f"WHERE j.state = '{JobState.DONE}' "
        "AND EXISTS (SELECT 1 FROM results r WHERE r.job_id = j.id AND r.removed_at IS NULL) "
        "AND NOT EXISTS (SELECT 1 FROM results r JOIN deliveries d ON d.result_id = r.id WHERE r.job_id = j.id) "
        "GROUP BY i.calling_ae_title"
    )
    return sorted(({"sender": sender, "count": count} for sender, count in rows), key=lambda row: -row["count"])


def waiting_of(found: Mapping[str, Any]) -> int:
    """How many deliveries of a destination, a row of `by_destination`, are still to come to their end."""
    return sum(found.get("states", {}).get(state, 0) for state in ("waiting", "sending", "committing"))


def state_of(found: Mapping[str, Any], *, is_named: bool) -> str:
    """How a destination is: gone (from the settings), in_trouble, sending, held or idle."""
    if not is_named:
        return "gone"
    if waiting_of(found):
        return "in_trouble" if found.get("is_failing") else "sending"
    return "held" if found.get("states", {}).get("held") else "idle"
