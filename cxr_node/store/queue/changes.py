"""Operators' changes to the queue: retry and cancel selected jobs and deliveries in one transaction."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, select, update

from cxr_node.records import AuditEvent, DeliveryState, JobState
from cxr_node.settings import Settings
from cxr_node.store.audit_log import audit
from cxr_node.store.database import write
from cxr_node.store.queue import confirmations, resend
from cxr_node.store.queue.deliveries import NO_DESTINATION, NOT_SENT_THERE
from cxr_node.store.queue.missing_deliveries import Added, add_missing
from cxr_node.store.queue.selection import Selection, is_corrected, of_deliveries, of_jobs
from cxr_node.store.schema import deliveries, instances, jobs, results

_UNDER_WAY = "it is in progress"
_ENDED = "it has ended: there is nothing to cancel"
_CORRECTED = "a corrected image has replaced it (name its number to do it anyway)"
_NOTHING_TO_ACCEPT = "it is not an image that is held as a possible correction"
_NO_IMAGE = "its image is no longer in the data folder: send the image again, then retry it"
_NO_FILE = "its file and its image are no longer in the data folder: send the image again, then retry it"


@dataclass
class ChangeOutcome:
    """What was chosen, and what became of it.

    changed: numbers of what was changed (with a dry run: would be).
    refused: numbers of what was not, by the reason.
    absent: numbers that were named and don't exist, or that the rest of the selection leaves out.
    added: what the settings ask for and was missing.
    """

    changed: list[int] = field(default_factory=list)
    refused: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    absent: list[int] = field(default_factory=list)
    added: Added = field(default_factory=Added)

    @property
    def chosen(self) -> int:
        """How many were chosen."""
        return len(self.changed) + len(self.absent) + sum(map(len, self.refused.values()))


def change(
    engine: Engine, action: str, chosen: Selection, user: str, settings: Settings, *, deliveries: bool, dry_run: bool = False
) -> ChangeOutcome:
    """Retry or cancel the selected jobs or deliveries, or accept the selected jobs.

    Args:
        engine: the database.
        action: "retry", "cancel" or, for jobs, "accept".
        chosen: the selection.
        user: for the audit log.
        settings: see `retry_deliveries`.
        deliveries: whether the selection means deliveries.
        dry_run: change nothing, and count.
    """
    if deliveries and action == "retry":
        return retry_deliveries(engine, chosen, user, settings, dry_run=dry_run)
    if deliveries:
        return cancel_deliveries(engine, chosen, user, dry_run=dry_run)
    of_jobs = {"retry": retry_jobs, "accept": accept_jobs, "cancel": cancel_jobs}[action]
    return of_jobs(engine, chosen, user, dry_run=dry_run)


def retry_jobs(engine: Engine, chosen: Selection, user: str, *, dry_run: bool = False) -> ChangeOutcome:
    """Put jobs back into the queue, due now, whatever their state; results of finished jobs are composed and sent again."""

    def change(connection: Connection, outcome: ChangeOutcome) -> None:
        for row in _chosen_jobs(connection, chosen, outcome):
            if row["state"] == JobState.RUNNING:
                outcome.refused[_UNDER_WAY].append(row["id"])
            elif row["corrected"] and not chosen.numbers:
                outcome.refused[_CORRECTED].append(row["id"])
            elif row["removed_at"] is not None:
                outcome.refused[_NO_IMAGE].append(row["id"])
            else:
                _redo(connection, row["id"], user, row, again=row["state"] in (JobState.DONE, JobState.REJECTED))
                outcome.changed.append(row["id"])

    return _all_or_none(engine, change, dry_run)


def accept_jobs(engine: Engine, chosen: Selection, user: str, *, dry_run: bool = False) -> ChangeOutcome:
    """Take held images of senders that may not correct as corrections (see `confirmations`)."""

    def change(connection: Connection, outcome: ChangeOutcome) -> None:
        for row in _chosen_jobs(connection, chosen, outcome):
            if row["state"] == JobState.RUNNING:
                outcome.refused[_UNDER_WAY].append(row["id"])
            elif not row["unconfirmed"]:
                outcome.refused[_NOTHING_TO_ACCEPT].append(row["id"])
            elif row["removed_at"] is not None:
                outcome.refused[_NO_IMAGE].append(row["id"])
            else:
                confirmations.confirm(connection, row["instance_id"], user)
                outcome.changed.append(row["id"])

    return _all_or_none(engine, change, dry_run)


def cancel_jobs(engine: Engine, chosen: Selection, user: str, *, dry_run: bool = False) -> ChangeOutcome:
    """Take waiting and held jobs out of the queue."""

    def change(connection: Connection, outcome: ChangeOutcome) -> None:
        for row in _chosen_jobs(connection, chosen, outcome):
            if row["state"] not in (JobState.NEW, JobState.HELD):
                outcome.refused[_UNDER_WAY if row["state"] == JobState.RUNNING else _ENDED].append(row["id"])
                continue
            values = {"state": JobState.CANCELLED, "attempts": 0, "not_before": 0, "finished_at": time.time()}
            connection.execute(update(jobs).where(jobs.c.id == row["id"]).values(**values))
            audit.add(connection, _event("job-cancelled", user, row, f"job {row['id']}"))
            outcome.changed.append(row["id"])

    return _all_or_none(engine, change, dry_run)


def retry_deliveries(
    engine: Engine, chosen: Selection, user: str, settings: Settings | None = None, *, dry_run: bool = False
) -> ChangeOutcome:
    """Make deliveries due now, those that were sent included; a result whose file is gone is made again first.

    Args:
        engine: the database.
        chosen: which.
        user: for the audit log.
        settings: what they no longer ask for is refused, and what they ask for and was never made is added; None: neither.
        dry_run: change nothing, and count.
    """

    def change(connection: Connection, outcome: ChangeOutcome) -> None:
        for row in _chosen_deliveries(connection, chosen, outcome):
            if reason := _why_not(row, chosen, settings):
                outcome.refused[reason].append(row["id"])
                continue
            _send_again(connection, row, user)
            outcome.changed.append(row["id"])
        if settings is not None and not chosen.numbers and not chosen.state:
            outcome.added = _add_missing(connection, settings, chosen)

    return _all_or_none(engine, change, dry_run)


def cancel_deliveries(engine: Engine, chosen: Selection, user: str, *, dry_run: bool = False) -> ChangeOutcome:
    """Give up waiting, committing and held deliveries."""

    def change(connection: Connection, outcome: ChangeOutcome) -> None:
        for row in _chosen_deliveries(connection, chosen, outcome):
            if row["state"] not in (DeliveryState.WAITING, DeliveryState.COMMITTING, DeliveryState.HELD):
                outcome.refused[_UNDER_WAY if row["state"] == DeliveryState.SENDING else _ENDED].append(row["id"])
                continue
            values = {"state": DeliveryState.CANCELLED, "attempts": 0, "asks": 0, "not_before": 0}
            connection.execute(update(deliveries).where(deliveries.c.id == row["id"]).values(**values))
            audit.add(connection, _event("delivery-cancelled", user, row, f"delivery {row['id']} to {row['destination']}"))
            outcome.changed.append(row["id"])

    return _all_or_none(engine, change, dry_run)


class _UndoneError(Exception):
    """Ends the transaction of a dry run."""


def _all_or_none(engine: Engine, change: Callable[[Connection, ChangeOutcome], None], dry_run: bool) -> ChangeOutcome:
    outcome = ChangeOutcome()
    with suppress(_UndoneError), write(engine) as connection:
        change(connection, outcome)
        if dry_run:
            raise _UndoneError
    return outcome


_IMAGE = (instances.c.patient_id, instances.c.study_instance_uid)


def _chosen_jobs(connection: Connection, chosen: Selection, outcome: ChangeOutcome) -> list[RowMapping]:
    query = (
        select(
            *(jobs.c.id, jobs.c.state, jobs.c.findings, instances.c.removed_at, is_corrected().label("corrected"), *_IMAGE),
            *(instances.c.sop_instance_uid, instances.c.unconfirmed, jobs.c.instance_id),
        )
        .join(instances, jobs.c.instance_id == instances.c.id)
        .where(of_jobs(chosen))
        .order_by(jobs.c.id)
        .with_for_update(of=(jobs, instances))  # retention waits
    )
    rows = list(connection.execute(query).mappings())
    outcome.absent = sorted(set(chosen.numbers) - {row["id"] for row in rows})
    return rows


def _chosen_deliveries(connection: Connection, chosen: Selection, outcome: ChangeOutcome) -> list[RowMapping]:
    query = (
        select(
            *(deliveries.c.id, deliveries.c.state, deliveries.c.destination, results.c.kind, results.c.job_id, *_IMAGE),
            results.c.sop_instance_uid,
            results.c.removed_at.label("file_removed_at"),
            instances.c.removed_at.label("image_removed_at"),
            jobs.c.state.label("job_state"),
            is_corrected().label("corrected"),
        )
        .join(results, deliveries.c.result_id == results.c.id)
        .join(jobs, results.c.job_id == jobs.c.id)
        .join(instances, jobs.c.instance_id == instances.c.id)
        .where(of_deliveries(chosen))
        .order_by(deliveries.c.id)
        .with_for_update(of=(deliveries, results, instances))
    )
    rows = list(connection.execute(query).mappings())
    outcome.absent = sorted(set(chosen.numbers) - {row["id"] for row in rows})
    return rows


def _why_not(row: RowMapping, chosen: Selection, settings: Settings | None) -> str:
    """Why a delivery can't be retried; empty if it can."""
    if row["state"] == DeliveryState.SENDING:
        return _UNDER_WAY
    if row["corrected"] and not chosen.numbers:
        return _CORRECTED
    if settings is not None:
        asked = {destination.name: destination.send for destination in settings.destinations}
        if row["destination"] not in asked:
            return NO_DESTINATION
        if row["kind"] not in asked[row["destination"]]:
            return NOT_SENT_THERE
    if row["file_removed_at"] is not None and row["image_removed_at"] is not None:
        return _NO_FILE
    return ""


def _send_again(connection: Connection, row: RowMapping, user: str) -> None:
    values: dict[str, Any] = {"state": DeliveryState.WAITING, "attempts": 0, "asks": 0, "not_before": 0, "transaction_uid": ""}
    values["superseded_by"] = None
    if row["file_removed_at"] is not None:
        values |= {"state": DeliveryState.HELD, "reason": resend.BEING_MADE}
        if row["job_state"] not in (JobState.NEW, JobState.RUNNING):
            _redo(connection, row["job_id"], user, row)
    connection.execute(update(deliveries).where(deliveries.c.id == row["id"]).values(**values))
    audit.add(connection, _event("delivery-retried", user, row, f"delivery {row['id']} to {row['destination']}"))


def _redo(connection: Connection, job_id: int, user: str, row: RowMapping, *, again: bool = False) -> None:
    values: dict[str, Any] = {"state": JobState.NEW, "attempts": 0, "not_before": 0, "reasons": "[]", "finished_at": None}
    values["superseded_by"] = None
    if again:
        values["findings"] = resend.mark(row["findings"])
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(**values))
    audit.add(connection, _event("job-retried", user, row, f"job {job_id}"))


def _add_missing(connection: Connection, settings: Settings, chosen: Selection) -> Added:
    """What is missing of the chosen images, of the chosen kind and for the chosen destination alone."""
    destinations = tuple(
        one.model_copy(update={"send": tuple(kind for kind in one.send if chosen.kind in ("", kind))})
        for one in settings.destinations
        if chosen.destination in ("", one.name)
    )
    of_image = Selection(
        **{name: getattr(chosen, name) for name in ("study", "patient", "accession", "sop", "sender", "since", "until")}
    )
    return add_missing(connection, settings.model_copy(update={"destinations": destinations}), of_jobs(of_image))


def _event(event: str, user: str, row: RowMapping, detail: str) -> AuditEvent:
    whose = {key: row[key] for key in ("patient_id", "study_instance_uid", "sop_instance_uid")}
    return AuditEvent(event, user=user, **whose, detail=detail)
