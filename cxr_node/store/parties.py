"""What `status` says of each destination and each sender, and of results that go nowhere; asked for in plain SQL.

A health check asks twice a minute: this module needs no SQLAlchemy (see `Ask`).
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from cxr_node.records import REPORT_CLASS_NAMES, DeliveryState, JobState, ResultKind, answer_of

# ruff: noqa: S608 - what is put into SQL here are names of states and events

Ask = Callable[..., list[tuple[Any, ...]]]
"""Asks the database: SQL with parameters as `:name`, and these by name; gives rows."""

_REMEMBERED_S = 7 * 86400.0
_OPEN_STATES = (DeliveryState.WAITING, DeliveryState.SENDING, DeliveryState.COMMITTING)
_OPEN = ", ".join(f"'{state}'" for state in _OPEN_STATES)
_FAILURES = "'result-delayed', 'result-held', 'result-not-kept'"


def by_destination(ask: Ask) -> dict[str, dict[str, Any]]:
    """For each destination that ever had a delivery: how many are in each state, since when the oldest waits, the last that was
    sent, and the last failure. Times are UTC seconds since the epoch, or None where there is none.
    """
    found: dict[str, dict[str, Any]] = {}
    sql = "SELECT destination, state, count(*), min(created_at), max(sent_at) FROM deliveries GROUP BY destination, state"
    for name, state, count, oldest, sent in ask(sql):
        one = found.setdefault(name, {"states": {}, "oldest_waiting_at": None, "last_sent_at": None})
        one["states"][state] = count
        if state in _OPEN_STATES:
            one["oldest_waiting_at"] = min(oldest, one["oldest_waiting_at"] or oldest)
        one["last_sent_at"] = max(sent or 0, one["last_sent_at"] or 0) or None
    for name, one in found.items():
        one.update(_last_error(ask, name))
    return found


def _last_error(ask: Ask, destination: str) -> dict[str, Any]:
    """What a destination last failed with: of what waits for it now, else of what the audit log has of the last week."""
    events = ask(
        f'SELECT at, detail FROM audit WHERE at >= :since AND event IN ({_FAILURES}) AND "user" = :name ORDER BY at DESC LIMIT 1',
        since=time.time() - _REMEMBERED_S,  # the log is kept for ever
        name=destination,
    )
    waiting = ask(
        f"SELECT reason FROM deliveries WHERE destination = :name AND state IN ({_OPEN}, '{DeliveryState.HELD}') "
        "AND reason != '' ORDER BY attempts DESC, id DESC LIMIT 1",
        name=destination,
    )
    at, detail = events[0] if events else (None, "")
    return {"last_error": waiting[0][0] if waiting else detail, "last_error_at": at, "is_failing": bool(waiting)}


def by_sender(ask: Ask, since: float) -> dict[str, dict[str, Any]]:
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

    for name, count, last in ask("SELECT calling_ae_title, count(*), max(received_at) FROM instances GROUP BY calling_ae_title"):
        entry(name, last).update({"received": count, "last_received_at": last})
    sql = "SELECT sender, reason, sum(count), max(last_at) FROM refusals WHERE day >= :day GROUP BY sender, reason"
    for name, reason, count, last in ask(sql, day=int(since // 86400)):
        one = entry(name, last)
        one["refused"] += int(count)  # PostgreSQL's sum is a Decimal
        one["refused_by_reason"][reason] = int(count)
        one["last_seen_at"] = max(one["last_seen_at"], last)
    return found


def report_classes_sent(ask: Ask) -> dict[str, dict[str, int]]:
    """How many reports went out as which class of structured report, by destination and the class's name."""
    sql = (
        "SELECT d.destination, CASE WHEN d.sent_sop_class_uid != '' THEN d.sent_sop_class_uid ELSE r.sop_class_uid END "
        "AS class_uid, count(*) FROM deliveries d JOIN results r ON r.id = d.result_id "
        f"WHERE r.kind = '{ResultKind.REPORT}' AND d.sent_at IS NOT NULL GROUP BY d.destination, class_uid ORDER BY d.destination"
    )
    found: dict[str, dict[str, int]] = {}
    for destination, uid, count in ask(sql):
        found.setdefault(destination, {})[REPORT_CLASS_NAMES.get(uid, str(uid))] = count
    return found


def last_day(ask: Ask) -> dict[str, Any]:
    """Of the jobs done in the last 24 hours: `answers`, how often each was given, and `warnings` with their `count`."""
    sql = f"SELECT findings FROM jobs WHERE state = '{JobState.DONE}' AND finished_at >= :since"
    found = [json.loads(text) for (text,) in ask(sql, since=time.time() - 86400.0)]
    answers = Counter(answer_of(findings)["answer"] for findings in found)
    warnings = Counter(warning for findings in found for warning in findings.get("warnings", []))
    return {
        "answers": dict(answers.most_common()),
        "warnings": [{"count": count, "warning": warning} for warning, count in warnings.most_common()],
    }


def going_nowhere(ask: Ask) -> list[dict[str, Any]]:
    """Analysed images whose results have no delivery at all: `sender` and `count`, the most first."""
    rows = ask(
        "SELECT i.calling_ae_title, count(*) FROM jobs j JOIN instances i ON i.id = j.instance_id "
        f"WHERE j.state = '{JobState.DONE}' "
        "AND EXISTS (SELECT 1 FROM results r WHERE r.job_id = j.id AND r.removed_at IS NULL) "
        "AND NOT EXISTS (SELECT 1 FROM results r JOIN deliveries d ON d.result_id = r.id WHERE r.job_id = j.id) "
        "GROUP BY i.calling_ae_title"
    )
    return sorted(({"sender": sender, "count": count} for sender, count in rows), key=lambda row: -row["count"])
