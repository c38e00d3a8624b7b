"""Monotonic totals for monitoring: counted from the tables incrementally, and kept in the database.

Rows may be removed later (merged images, old refusals), and jobs may be repeated. A total that was recomputed each time could
then fall, and Prometheus would interpret that as a counter reset. If several processes count, only one of them makes each step.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, and_, func, insert, select, update

from cxr_node.records import DeliveryState, JobState, answer_of
from cxr_node.store.database import write
from cxr_node.store.schema import deliveries, instances, jobs, metric_totals, refusals

LAG_S = 5.0
"""Delay before rows are counted: by then every writer has committed."""
JOB_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
DELIVERY_BUCKETS_S = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0)
OTHERS = "(others)"
_MOST_NAMES = 200
"""Of senders in one total: made-up AE titles fill neither the database nor the monitor."""

_RECEIVED, _ANSWERS = "instances_received", "answers"
_JOB, _JOB_SUM = "job_seconds", "job_seconds_sum"
_DELIVERY, _DELIVERY_SUM = "delivery_seconds", "delivery_seconds_sum"
_PAST_REFUSALS = "refused_past"
_CURSOR = "cursor"

TotalKey = tuple[str, tuple[str, ...]]
"""A total's name and the values of its labels."""


@dataclass
class Histogram:
    """How many were at most as long as each bucket, in their order, infinity last, not summed up; and their sum in seconds."""

    counts: list[int]
    sum_s: float = 0.0


@dataclass
class Totals:
    """What has been counted so far.

    received: by sender and result ("accepted", "kept" unanalysed, "refused").
    answers: by sender and answer; "rejected" is one of them.
    job_seconds: by stage.
    """

    received: dict[tuple[str, str], int] = field(default_factory=dict)
    answers: dict[tuple[str, str], int] = field(default_factory=dict)
    job_seconds: dict[str, Histogram] = field(default_factory=dict)
    delivery_seconds: Histogram = field(default_factory=lambda: Histogram([0] * (len(DELIVERY_BUCKETS_S) + 1)))


def totals(engine: Engine) -> Totals:
    """Count what has come since, and give the totals."""
    known = _advance(engine)
    found = Totals()
    for (name, labels), value in known.items():
        if name == _RECEIVED:
            found.received[labels[0], labels[1]] = int(value)
        elif name == _ANSWERS:
            found.answers[labels[0], labels[1]] = int(value)
        elif name in (_JOB, _JOB_SUM):
            histogram = found.job_seconds.setdefault(labels[0], Histogram([0] * (len(JOB_BUCKETS_S) + 1)))
            _put(histogram, labels[1:], value)
        elif name in (_DELIVERY, _DELIVERY_SUM):
            _put(found.delivery_seconds, labels, value)
        elif name == _PAST_REFUSALS:
            found.received[labels[0], "refused"] = found.received.get((labels[0], "refused"), 0) + int(value)
    with engine.connect() as connection:
        for sender, count in _refused(connection):
            found.received[sender, "refused"] = found.received.get((sender, "refused"), 0) + count
    return found


def keep_refusals(connection: Connection, before_day: int) -> None:
    """Add the refusals of the days that are about to be forgotten to the totals, in the transaction that forgets them."""
    query = select(refusals.c.sender, func.sum(refusals.c.count)).where(refusals.c.day < before_day, refusals.c.what == "image")
    counted = Counter({sender: int(count) for sender, count in connection.execute(query.group_by(refusals.c.sender))})
    if counted:
        known = _known(connection)
        _add(connection, known, {(_PAST_REFUSALS, (sender,)): count for sender, count in counted.items()})


def _advance(engine: Engine) -> dict[TotalKey, float]:
    """Count what came since the cursors; the reading is done before the transaction that writes, and thrown away if another
    process has counted meanwhile.
    """
    until = time.time() - LAG_S
    with engine.connect() as connection:
        known = _known(connection)
        cursors = {name: known.get((_CURSOR, (name,)), 0.0) for name in ("instances", "jobs", "deliveries")}
        more: Counter[TotalKey] = Counter()
        last_id = _count_instances(connection, int(cursors["instances"]), until, more)
        _count_jobs(connection, cursors["jobs"], until, more)
        _count_deliveries(connection, cursors["deliveries"], until, more)
    if not more and last_id == cursors["instances"]:
        return known
    with write(engine) as connection:
        now_known = _known(connection)
        if any(now_known.get((_CURSOR, (name,)), 0.0) != value for name, value in cursors.items()):
            return now_known
        for name, value in (("instances", float(last_id)), ("jobs", until), ("deliveries", until)):
            _set(connection, now_known, (_CURSOR, (name,)), value)
        _add(connection, now_known, more)
    return now_known


def _count_instances(connection: Connection, after: int, until: float, more: Counter[TotalKey]) -> int:
    first_recent = connection.execute(
        select(func.min(instances.c.id)).where(instances.c.id > after, instances.c.received_at > until)
    ).scalar()
    is_new = instances.c.id > after
    if first_recent is not None:
        is_new = and_(is_new, instances.c.id < first_recent)
    is_kept = instances.c.note != ""
    query = select(instances.c.calling_ae_title, is_kept, func.count(), func.max(instances.c.id)).where(is_new)
    last = after
    for sender, kept, count, highest in connection.execute(query.group_by(instances.c.calling_ae_title, is_kept)):
        more[_RECEIVED, (sender, "kept" if kept else "accepted")] += count
        last = max(last, highest)
    return last


def _count_jobs(connection: Connection, after: float, until: float, more: Counter[TotalKey]) -> None:
    query = (
        select(jobs.c.state, jobs.c.findings, instances.c.calling_ae_title)
        .join(instances, jobs.c.instance_id == instances.c.id)
        .where(jobs.c.finished_at > after, jobs.c.finished_at <= until)
        .where(jobs.c.state.in_((JobState.DONE, JobState.REJECTED)))
        .execution_options(yield_per=1000)
    )
    for state, text, sender in connection.execute(query):
        if state == JobState.REJECTED:
            more[_ANSWERS, (sender, "rejected")] += 1
            continue
        findings = json.loads(text)
        more[_ANSWERS, (sender, answer_of(findings)["answer"])] += 1
        for stage, seconds in findings.get("seconds", {}).items():
            more[_JOB, (str(stage), str(bisect_left(JOB_BUCKETS_S, seconds)))] += 1
            more[_JOB_SUM, (str(stage),)] += seconds


def _count_deliveries(connection: Connection, after: float, until: float, more: Counter[TotalKey]) -> None:
    query = (
        select(deliveries.c.created_at, deliveries.c.sent_at)
        .where(deliveries.c.sent_at > after, deliveries.c.sent_at <= until, deliveries.c.state == DeliveryState.SENT)
        .execution_options(yield_per=1000)
    )
    for created_at, sent_at in connection.execute(query):
        seconds = max(0.0, sent_at - created_at)
        more[_DELIVERY, (str(bisect_left(DELIVERY_BUCKETS_S, seconds)),)] += 1
        more[_DELIVERY_SUM, ()] += seconds


def _refused(connection: Connection) -> list[tuple[str, int]]:
    query = select(refusals.c.sender, func.sum(refusals.c.count)).where(refusals.c.what == "image").group_by(refusals.c.sender)
    rows = [(sender, int(count)) for sender, count in connection.execute(query.order_by(func.min(refusals.c.id)))]
    others = sum(count for _, count in rows[_MOST_NAMES:])
    return rows[:_MOST_NAMES] + ([(OTHERS, others)] if others else [])


def _put(histogram: Histogram, labels: tuple[str, ...], value: float) -> None:
    if labels:
        histogram.counts[int(labels[0])] = int(value)
    else:
        histogram.sum_s = value


def _known(connection: Connection) -> dict[TotalKey, float]:
    rows = connection.execute(select(metric_totals.c.name, metric_totals.c.labels, metric_totals.c.value))
    return {(name, tuple(json.loads(labels))): value for name, labels, value in rows}


def _add(connection: Connection, known: dict[TotalKey, float], more: dict[TotalKey, Any]) -> None:
    """Add to the totals, and to `known`, which is what they were."""
    merged: Counter[TotalKey] = Counter()
    for (name, labels), value in more.items():
        merged[_within_bounds(name, labels, (*known, *merged))] += value
    for key, value in merged.items():
        _set(connection, known, key, known.get(key, 0.0) + value)


def _within_bounds(name: str, labels: tuple[str, ...], known: Collection[TotalKey]) -> TotalKey:
    """The key to count under: a sender beyond the bound is counted among the others."""
    if name in (_RECEIVED, _ANSWERS, _PAST_REFUSALS) and (name, labels) not in known:
        senders = {one[0] for other, one in known if other == name}
        if labels[0] not in senders and len(senders) >= _MOST_NAMES:
            return name, (OTHERS, *labels[1:])
    return name, labels


def _set(connection: Connection, known: dict[TotalKey, float], key: TotalKey, value: float) -> None:
    name, labels = key[0], json.dumps(key[1])
    if key in known:
        is_it = (metric_totals.c.name == name) & (metric_totals.c.labels == labels)
        connection.execute(update(metric_totals).where(is_it).values(value=value))
    else:
        connection.execute(insert(metric_totals).values(name=name, labels=labels, value=value))
    known[key] = value
