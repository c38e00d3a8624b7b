"""Deliveries that the settings require but that do not exist: a new destination, or an image that took a second route.

An existing result gets a delivery. A kind that was never composed, or whose file is gone, is made by repeating its job.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, and_, exists, insert, or_, select, update

from cxr_node.dicom.routes import read_route_header
from cxr_node.records import AuditEvent, DeliveryState, Job, JobState, ResultKind
from cxr_node.settings import Header, Settings
from cxr_node.store.audit_log import audit
from cxr_node.store.database import write
from cxr_node.store.files.storage import blobs_of
from cxr_node.store.queue.deliveries import was_unrequested
from cxr_node.store.queue.selection import is_corrected
from cxr_node.store.schema import audit as audit_table
from cxr_node.store.schema import deliveries, instances, jobs, results

_BATCH = 200
_AFTER_FRESH_IMAGES = -1
"""The priority of jobs done again at a start: what comes in meanwhile goes first."""


@dataclass(frozen=True)
class Added:
    """How many deliveries were added, and how many jobs are done again for what is missing."""

    deliveries: int = 0
    jobs: int = 0

    def __add__(self, other: Added) -> Added:
        return Added(self.deliveries + other.deliveries, self.jobs + other.jobs)


def wanted(settings: Settings, senders: Iterable[str], header: Header | None) -> dict[str, tuple[ResultKind, ...]]:
    """Where the results of an image go, and of which kinds: wherever the routes of any of its senders lead."""
    found = {one.name: one.send for sender in sorted(senders) for one in settings.destinations_for(sender, header)}
    return {one.name: one.send for one in settings.destinations if one.name in found}


def senders_of(engine: Engine, job: Job) -> set[str]:
    """AE titles of all that have sent a job's image: the first, and those that sent it again."""
    with engine.connect() as connection:
        known = _senders(connection, [(job.study_instance_uid, job.sop_instance_uid)])
    return {job.calling_ae_title} | known[job.study_instance_uid, job.sop_instance_uid]


def add_for_instance(connection: Connection, settings: Settings, instance_id: int, also_from: str = "") -> Added:
    """Add what is missing for an instance that came again, in the caller's transaction.

    Args:
        connection: in a transaction that writes.
        settings: the settings tree.
        instance_id: the instance.
        also_from: AE title of the sender that it came from this time, which the audit log may not tell of yet.
    """
    return add_missing(connection, settings, instances.c.id == instance_id, also_from=also_from)


def add_for_merged(engine: Engine, settings: Settings, instance_id: int) -> Added:
    """Add what is missing for an instance that arrived again in another encoding."""
    with write(engine) as connection:
        return add_for_instance(connection, settings, instance_id)


def add_for_job(engine: Engine, settings: Settings, job: Job) -> Added:
    """Add what is missing for a job that has ended."""
    with write(engine) as connection:
        return add_missing(connection, settings, jobs.c.id == job.id)


def add_missing(
    connection: Connection, settings: Settings, condition: Any, *, also_from: str = "", priority: int | None = None
) -> Added:
    """Add what is missing for the ended jobs that meet a condition, in the caller's transaction.

    Args:
        connection: in a transaction that writes.
        settings: the settings tree.
        condition: on columns of `jobs` and `instances`.
        also_from: AE title of a sender that the audit log may not tell of yet.
        priority: of the jobs that are done again; None leaves theirs.
    """
    query = _ended().where(condition).order_by(jobs.c.id).with_for_update(of=jobs)
    plans = _plan(connection, settings, connection.execute(query).mappings().all(), also_from)
    return sum((_carry_out(connection, plan, priority) for plan in plans), Added())


def add_at_start(engine: Engine, settings: Settings, is_stopping: Callable[[], bool] = lambda: False) -> Added:
    """Add what is missing for all jobs whose image or results are still there; many short transactions."""
    added, last = Added(), 0
    there_is_a_file = or_(
        instances.c.removed_at.is_(None), exists().where(results.c.job_id == jobs.c.id, results.c.removed_at.is_(None))
    )
    while not is_stopping():
        with engine.connect() as connection:  # most have nothing missing: looking takes no lock
            query = _ended().where(jobs.c.id > last, there_is_a_file).order_by(jobs.c.id).limit(_BATCH)
            rows = connection.execute(query).mappings().all()
            if not rows:
                break
            last = rows[-1]["job_id"]
            found = [plan.row["job_id"] for plan in _plan(connection, settings, rows) if not _is_notice_to_make(plan)]
        if found:
            with write(engine) as connection:
                added += add_missing(connection, settings, jobs.c.id.in_(found), priority=_AFTER_FRESH_IMAGES)
    return added


@dataclass(frozen=True)
class _Plan:
    """What is missing of one job: deliveries of results (id, kind, destination), and kinds that have to be made for it."""

    row: RowMapping
    deliveries: tuple[tuple[int, str, str], ...]
    to_make: tuple[str, ...]


def _is_notice_to_make(plan: _Plan) -> bool:
    """Of some rejected images no notice can be made: each start would try it again."""
    return plan.row["state"] == JobState.REJECTED and not plan.deliveries


def _ended() -> Any:
    """Ended jobs with their instances, without those that a corrected image has taken the place of."""
    return (
        select(
            jobs.c.id.label("job_id"),
            jobs.c.state,
            jobs.c.findings,
            instances.c.path,
            instances.c.removed_at,
            instances.c.calling_ae_title,
            instances.c.patient_id,
            instances.c.study_instance_uid,
            instances.c.sop_instance_uid,
        )
        .join(instances, jobs.c.instance_id == instances.c.id)
        .where(jobs.c.state.in_((JobState.DONE, JobState.REJECTED)), ~is_corrected())
    )


def _plan(connection: Connection, settings: Settings, rows: Collection[RowMapping], also_from: str = "") -> list[_Plan]:
    if not rows or not settings.destinations:
        return []
    senders = _senders(connection, [(row["study_instance_uid"], row["sop_instance_uid"]) for row in rows])
    made: dict[int, dict[str, Any]] = defaultdict(dict)
    there = set()
    ids = [row["job_id"] for row in rows]
    columns = (results.c.id, results.c.job_id, results.c.kind, results.c.removed_at)
    for result in connection.execute(select(*columns).where(results.c.job_id.in_(ids)).order_by(results.c.id)):
        made[result.job_id][result.kind] = result  # of several models the newest
    known = select(results.c.job_id, results.c.kind, deliveries.c.destination).join(
        deliveries, deliveries.c.result_id == results.c.id
    )
    ended_and_gone = and_(deliveries.c.state == DeliveryState.CANCELLED, was_unrequested(), results.c.removed_at.is_not(None))
    for delivery in connection.execute(known.where(results.c.job_id.in_(ids), ~ended_and_gone)):
        there.add((delivery.job_id, delivery.kind, delivery.destination))
    plans = []
    for row in rows:
        from_all = {row["calling_ae_title"], *senders[row["study_instance_uid"], row["sop_instance_uid"]]}
        if also_from:
            from_all.add(also_from)
        plan = _missing(settings, row, from_all, made[row["job_id"]], there)
        if plan.deliveries or plan.to_make:
            plans.append(plan)
    return plans


def _missing(
    settings: Settings, row: RowMapping, senders: set[str], made: Mapping[str, Any], there: set[tuple[int, str, str]]
) -> _Plan:
    header = None
    has_image = row["removed_at"] is None
    if settings.route_keywords:
        header = _header(settings, row["path"]) if has_image else None
        if header is None:  # which way its route went can't be told any more
            return _Plan(row, (), ())
    to_add, to_make = [], set()
    none_of = json.loads(row["findings"]).get("not_composed", ())  # kinds that there are none of for such an image
    for name, kinds in wanted(settings, senders, header).items():
        for kind in kinds:
            if row["state"] == JobState.REJECTED and kind not in settings.not_analysed.kinds:
                continue
            if (row["job_id"], kind, name) in there:
                continue
            result = made.get(kind)
            if result is not None and result.removed_at is None:
                to_add.append((result.id, str(kind), name))
            elif has_image and kind not in none_of:
                to_make.add(str(kind))
    return _Plan(row, tuple(to_add), tuple(sorted(to_make)))


def _header(settings: Settings, key: str) -> Header | None:
    try:
        with blobs_of(settings).fetch(key) as path:
            return read_route_header(path, settings)
    except FileNotFoundError:
        return None


def _carry_out(connection: Connection, plan: _Plan, priority: int | None) -> Added:
    now = time.time()
    common = {"attempts": 0, "not_before": 0, "lease_owner": "", "lease_until": 0, "reason": "", "created_at": now}
    for result_id, _, name in plan.deliveries:
        values = {"result_id": result_id, "destination": name, "state": DeliveryState.WAITING, **common}
        connection.execute(insert(deliveries).values(**values))
    if plan.deliveries:
        detail = ", ".join(f"{kind} to {name}" for _, kind, name in plan.deliveries)
        audit.add(connection, _event("deliveries-added", plan.row, detail))
    if not plan.to_make:
        return Added(len(plan.deliveries))
    again: dict[str, Any] = {"state": JobState.NEW, "attempts": 0, "not_before": 0, "reasons": "[]", "finished_at": None}
    if priority is not None:
        again["priority"] = priority
    connection.execute(
        update(jobs).where(jobs.c.id == plan.row["job_id"], jobs.c.state.in_((JobState.DONE, JobState.REJECTED))).values(**again)
    )
    detail = f"job {plan.row['job_id']}: {', '.join(plan.to_make)} to be made"
    audit.add(connection, _event("job-retried", plan.row, detail))
    return Added(len(plan.deliveries), 1)


def _event(event: str, row: RowMapping, detail: str) -> AuditEvent:
    whose = {key: row[key] for key in ("patient_id", "study_instance_uid", "sop_instance_uid")}
    return AuditEvent(event, **whose, detail=detail)


def _senders(connection: Connection, images: Collection[tuple[str, str]]) -> dict[tuple[str, str], set[str]]:
    """AE titles by study and SOP instance UID: the audit log has a row for each time that an instance came."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    query = select(audit_table.c.study_instance_uid, audit_table.c.sop_instance_uid, audit_table.c.user).where(
        and_(
            audit_table.c.study_instance_uid.in_({study for study, _ in images}),
            audit_table.c.sop_instance_uid.in_({image for _, image in images}),
            audit_table.c.event == "instance-received",
        )
    )
    for study, image, user in connection.execute(query):
        found[study, image].add(user)
    return found
