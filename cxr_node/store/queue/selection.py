"""Selections of jobs or deliveries: by number, by attributes of the image, by state, by time."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from sqlalchemy import and_, exists, func, or_

from cxr_node.records import DeliveryState, JobState, ResultKind
from cxr_node.store.schema import deliveries, instances, jobs, results


@dataclass(frozen=True)
class Selection:
    """All that is given has to match; what is empty or None matches everything.

    numbers: of jobs, or of deliveries.
    study, patient, accession: Study Instance UID, Patient ID, Accession Number of the image.
    sop: SOP Instance UID of the image or of one of its results.
    sender: AE title that the image came from.
    kind, destination: of the delivery; of jobs, one of their deliveries.
    since, until: UTC seconds since the epoch, from and before which a job was made, or a delivery sent (made, if not sent yet).
    """

    numbers: tuple[int, ...] = ()
    state: str = ""
    study: str = ""
    patient: str = ""
    accession: str = ""
    sop: str = ""
    sender: str = ""
    kind: str = ""
    destination: str = ""
    since: float | None = None
    until: float | None = None

    @property
    def is_everything(self) -> bool:
        """Whether nothing is given."""
        return all(getattr(self, field.name) == field.default for field in fields(self))

    def problem(self, *, deliveries: bool) -> str:
        """What is wrong with the state or the kind, starting with the name of the filter; empty if nothing is."""
        states: type[StrEnum] = DeliveryState if deliveries else JobState
        if self.state and self.state not in list(states):
            return f"state {self.state!r} is not one of {', '.join(states)}."
        if self.kind and self.kind not in list(ResultKind):
            return f"kind {self.kind!r} is not one of {', '.join(ResultKind)}."
        return ""


def of_jobs(chosen: Selection) -> Any:
    """The condition on `jobs` joined with their `instances`."""
    conditions = _of_image(chosen)
    if chosen.numbers:
        conditions.append(jobs.c.id.in_(chosen.numbers))
    if chosen.state:
        conditions.append(jobs.c.state == chosen.state)
    if chosen.sop:
        one_of_its_results = exists().where(results.c.job_id == jobs.c.id, results.c.sop_instance_uid == chosen.sop)
        conditions.append(or_(instances.c.sop_instance_uid == chosen.sop, one_of_its_results))
    if chosen.kind:
        conditions.append(exists().where(results.c.job_id == jobs.c.id, results.c.kind == chosen.kind))
    if chosen.destination:
        there = (results.c.id == deliveries.c.result_id, deliveries.c.destination == chosen.destination)
        conditions.append(exists().where(results.c.job_id == jobs.c.id, *there))
    return and_(True, *conditions, *_within(chosen, jobs.c.created_at))


def of_deliveries(chosen: Selection) -> Any:
    """The condition on `deliveries` joined with their `results`, `jobs` and `instances`."""
    conditions = _of_image(chosen)
    if chosen.numbers:
        conditions.append(deliveries.c.id.in_(chosen.numbers))
    if chosen.state:
        conditions.append(deliveries.c.state == chosen.state)
    if chosen.sop:
        conditions.append(or_(instances.c.sop_instance_uid == chosen.sop, results.c.sop_instance_uid == chosen.sop))
    if chosen.kind:
        conditions.append(results.c.kind == chosen.kind)
    if chosen.destination:
        conditions.append(deliveries.c.destination == chosen.destination)
    return and_(True, *conditions, *_within(chosen, func.coalesce(deliveries.c.sent_at, deliveries.c.created_at)))


def is_corrected() -> Any:
    """The condition on `instances` that a corrected image of the same study has come since, and is analysed in its place."""
    later, its_job = instances.alias("later"), jobs.alias("its_job")
    return (
        exists()
        .where(later.c.sop_instance_uid == instances.c.sop_instance_uid)
        .where(later.c.study_instance_uid == instances.c.study_instance_uid)
        .where(later.c.revision > instances.c.revision, its_job.c.instance_id == later.c.id, later.c.unconfirmed == 0)
    )


def _of_image(chosen: Selection) -> list[Any]:
    columns = {
        instances.c.study_instance_uid: chosen.study,
        instances.c.patient_id: chosen.patient,
        instances.c.accession_number: chosen.accession,
        instances.c.calling_ae_title: chosen.sender,
    }
    return [column == value for column, value in columns.items() if value]


def _within(chosen: Selection, moment: Any) -> list[Any]:
    since = [] if chosen.since is None else [moment >= chosen.since]
    return since if chosen.until is None else [*since, moment < chosen.until]
