"""Studies for the web pages: paged searches, and one study with its history.

Queries walk an index from its newest end and stop at the last row of a page, so a page costs the same with a million rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Select, exists, func, select

from cxr_node.records import JobState, answer_of
from cxr_node.store.distinct import distinct
from cxr_node.store.schema import audit, deliveries, instances, jobs, results
from cxr_node.store.views import names
from cxr_node.store.wildcards import matching

KEPT = "kept"
"""In place of a job's state: an instance that is kept and not analysed."""


@dataclass(frozen=True)
class Search:
    """What a person looks for; all that is given has to match.

    patient, accession, study, sender: exact, or with * as a wildcard.
    name: words of the patient's name, in any order, parts of words too.
    answer: one of records.LABELS, or "indeterminate".
    state: of the job, or KEPT.
    since, until: UTC seconds since the epoch, from and before which the image was received.
    """

    patient: str = ""
    name: str = ""
    accession: str = ""
    study: str = ""
    sender: str = ""
    answer: str = ""
    state: str = ""
    since: float | None = None
    until: float | None = None


def find_studies(engine: Engine, search: Search, *, page: int = 1, size: int = 24) -> tuple[list[dict[str, Any]], bool]:
    """A page of studies that have a matching image, the last received first, each shown by the last of these images.

    Returns:
        rows, and whether there are more: those of `_study_row`, `images` (how many the study has), `deliveries` (count by
        state, of all its images), `name`.
    """
    newer, its_job = instances.alias("newer"), jobs.alias("its_job")
    is_newest = ~(
        exists()
        .where(newer.c.study_instance_uid == instances.c.study_instance_uid, newer.c.id > instances.c.id)
        .where(*_conditions(engine, search, newer, its_job))
    )
    query = select(*_columns()).where(*_conditions(engine, search, instances, None), is_newest)
    if search.answer or (search.state and search.state != KEPT):
        query = query.join(jobs, jobs.c.instance_id == instances.c.id).order_by(jobs.c.id.desc())
    else:
        query = query.outerjoin(jobs, jobs.c.instance_id == instances.c.id)
        query = query.order_by(instances.c.received_at.desc(), instances.c.id.desc())
    with engine.connect() as connection:
        found = connection.execute(query.limit(size + 1).offset((page - 1) * size)).mappings().all()
        rows = [_study_row(row) for row in found[:size]]
        studies = [row["study_instance_uid"] for row in rows]
        images = _images_of(connection, studies)
        sent = _deliveries_of(connection, studies)
    known = names.names_of(engine, [row["instance_id"] for row in rows])
    for row in rows:
        uid = row["study_instance_uid"]
        row.update(images=images.get(uid, 1), deliveries=sent.get(uid, {}), name=known.get(row["instance_id"], ""))
    return rows, len(found) > size


def study(engine: Engine, study_instance_uid: str) -> list[dict[str, Any]]:
    """All images of a study, the last received first, each as `_study_row`, with `results` (rows) and their `deliveries`."""
    query = (
        select(*_columns())
        .outerjoin(jobs, jobs.c.instance_id == instances.c.id)
        .where(instances.c.study_instance_uid == study_instance_uid)
        .order_by(instances.c.received_at.desc(), instances.c.id.desc())
    )
    with engine.connect() as connection:
        rows = [_study_row(row) for row in connection.execute(query).mappings()]
        job_ids = [row["job_id"] for row in rows if row["job_id"] is not None]
        made = _made(connection, job_ids)
        sent = _sent(connection, job_ids)
    known = names.names_of(engine, [row["instance_id"] for row in rows])
    for row in rows:
        row["name"] = known.get(row["instance_id"], "")
        row["results"] = [{**one, "deliveries": sent.get(one["id"], [])} for one in made.get(row["job_id"], [])]
    return rows


def image(engine: Engine, instance_id: int) -> dict[str, Any] | None:
    """One image, as `study` has it, without names and deliveries; None: there is no such instance."""
    query = select(*_columns()).outerjoin(jobs, jobs.c.instance_id == instances.c.id).where(instances.c.id == instance_id)
    return _one_image(engine, query.order_by(jobs.c.id.desc()).limit(1))


def image_of_job(engine: Engine, job_id: int) -> dict[str, Any] | None:
    """The image of a job, likewise; None: there is no such job."""
    return _one_image(engine, select(*_columns()).join(jobs, jobs.c.instance_id == instances.c.id).where(jobs.c.id == job_id))


def _one_image(engine: Engine, query: Select[Any]) -> dict[str, Any] | None:
    with engine.connect() as connection:
        row = connection.execute(query).mappings().first()
        if row is None:
            return None
        found = _study_row(row)
        made = _made(connection, [] if found["job_id"] is None else [found["job_id"]])
    return {**found, "results": made.get(found["job_id"], [])}


def result(engine: Engine, result_id: int) -> dict[str, Any] | None:
    """A result with whose it is: for downloads; None: there is none."""
    whose = (instances.c.patient_id, instances.c.study_instance_uid, instances.c.accession_number)
    query = (
        select(results, *whose)
        .join(jobs, results.c.job_id == jobs.c.id)
        .join(instances, jobs.c.instance_id == instances.c.id)
        .where(results.c.id == result_id)
    )
    with engine.connect() as connection:
        row = connection.execute(query).mappings().first()
    return None if row is None else dict(row)


def events_of_study(engine: Engine, study_instance_uid: str, limit: int = 300) -> list[dict[str, Any]]:
    """What the audit log has of a study, oldest first; of very many events the newest."""
    newest = select(audit).where(audit.c.study_instance_uid == study_instance_uid).order_by(audit.c.id.desc()).limit(limit)
    with engine.connect() as connection:
        return [dict(row) for row in reversed(connection.execute(newest).mappings().all())]


def senders(engine: Engine) -> list[str]:
    """The AE titles that images came from, each found by a step in an index."""
    with engine.connect() as connection:
        return distinct(connection, instances.c.calling_ae_title) or []


def events(engine: Engine) -> list[str]:
    """The kinds of event that the audit log has."""
    with engine.connect() as connection:
        return distinct(connection, audit.c.event) or []


def _conditions(engine: Engine, search: Search, image: Any, job: Any) -> list[Any]:
    """Of images: on `instances` or an alias of it; `job`: an alias of jobs to be joined to it; None: `jobs` is joined already."""
    conditions = []
    for column, value in (
        (image.c.patient_id, search.patient),
        (image.c.accession_number, search.accession),
        (image.c.study_instance_uid, search.study),
        (image.c.calling_ae_title, search.sender),
    ):
        condition = matching(engine, column, value)
        if condition is not None:
            conditions.append(condition)
    if search.name and job is None:
        conditions.append(names.condition(search.name))
    if search.since is not None:
        conditions.append(image.c.received_at >= search.since)
    if search.until is not None:
        conditions.append(image.c.received_at < search.until)
    its = jobs if job is None else job
    of_job = []
    if search.answer:
        of_job += [its.c.answer == search.answer, its.c.answer != "", its.c.state == JobState.DONE]
    if search.state == KEPT:
        conditions.append(image.c.note != "")
    elif search.state:
        of_job.append(its.c.state == search.state)
    if of_job and job is not None:
        conditions.append(exists().where(its.c.instance_id == image.c.id, *of_job))
    else:
        conditions += of_job
    return conditions


def _columns() -> tuple[Any, ...]:
    return (
        instances.c.id.label("instance_id"),
        instances.c.sop_instance_uid,
        instances.c.revision,
        instances.c.study_instance_uid,
        instances.c.patient_id,
        instances.c.accession_number,
        instances.c.calling_ae_title.label("sender"),
        instances.c.host,
        instances.c.received_at,
        instances.c.note,
        instances.c.path,
        instances.c.size_bytes,
        instances.c.removed_at,
        jobs.c.id.label("job_id"),
        jobs.c.state,
        jobs.c.attempts,
        jobs.c.reasons,
        jobs.c.findings,
        jobs.c.model_version,
        jobs.c.created_at,
        jobs.c.analysed_at,
        jobs.c.finished_at,
    )


def _study_row(row: Any) -> dict[str, Any]:
    """One image with its job: the columns, `reasons` and `findings` read, `answer` and `likeliest` of a job that is done."""
    findings = json.loads(row["findings"] or "{}")
    reasons = json.loads(row["reasons"] or "[]")
    given = answer_of(findings if row["state"] == JobState.DONE else {})
    return {**row, "state": row["state"] or KEPT, "findings": findings, "reasons": reasons, **given}


def _images_of(connection: Connection, studies: Sequence[str]) -> dict[str, int]:
    query = select(instances.c.study_instance_uid, func.count()).where(instances.c.study_instance_uid.in_(studies))
    return {str(uid): int(count) for uid, count in connection.execute(query.group_by(instances.c.study_instance_uid)).all()}


def _deliveries_of(connection: Connection, studies: Sequence[str]) -> dict[str, dict[str, int]]:
    query = (
        select(instances.c.study_instance_uid, deliveries.c.state)
        .join(jobs, jobs.c.instance_id == instances.c.id)
        .join(results, results.c.job_id == jobs.c.id)
        .join(deliveries, deliveries.c.result_id == results.c.id)
        .where(instances.c.study_instance_uid.in_(studies))
    )
    found: dict[str, Counter[str]] = {}
    for uid, state in connection.execute(query).all():
        found.setdefault(str(uid), Counter())[str(state)] += 1
    return {uid: dict(counted) for uid, counted in found.items()}


def _made(connection: Connection, job_ids: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    query = select(results).where(results.c.job_id.in_(job_ids)).order_by(results.c.id)
    for row in connection.execute(query).mappings():
        found.setdefault(row["job_id"], []).append(dict(row))
    return found


def _sent(connection: Connection, job_ids: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    query = (
        select(deliveries).join(results, deliveries.c.result_id == results.c.id).where(results.c.job_id.in_(job_ids))
    ).order_by(deliveries.c.id)
    for row in connection.execute(query).mappings():
        found.setdefault(row["result_id"], []).append(dict(row))
    return found
