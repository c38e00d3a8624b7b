"""Storage commitment of what modalities sent: which instances are safe here, and the reports that are owed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, and_, delete, func, insert, or_, select, update

from cxr_node.commitment import CLASS_CONFLICT, NO_SUCH_INSTANCE, OUT_OF_RESOURCES, PROCESSING_FAILURE, Reference
from cxr_node.records import AuditEvent, DeliveryState
from cxr_node.store import audit
from cxr_node.store.backoff import backoff_s
from cxr_node.store.blobs import Blobs
from cxr_node.store.database import write
from cxr_node.store.digests import digest_of, earlier_digest_of, is_earlier
from cxr_node.store.schema import commitment_reports, instances

_FIRST_WAIT_S, _LONGEST_WAIT_S = 5.0, 3600.0
_MOST_ATTEMPTS = 30
_MOST_AT_ONCE = 500


@dataclass(frozen=True)
class Report:
    """A report that is owed to a modality."""

    id: int
    transaction_uid: str
    ae_title: str
    host: str
    committed: tuple[Reference, ...]
    failed: Mapping[Reference, int]
    attempts: int


def judge(
    engine: Engine, blobs: Blobs, references: Sequence[Reference], keep_s: float, has_room: Callable[[], bool]
) -> tuple[list[Reference], dict[Reference, int]]:
    """Promise to keep these instances for `keep_s` seconds; gives those promised, and of the others why not.

    An instance is promised if the content of its newest revision is what was received: its blob is read to its end. The
    promise is written down first, so that retention leaves the blobs alone from then on.

    Args:
        engine: the database.
        blobs: where instances are.
        references: what a modality asks for.
        keep_s: how long instances stay; 0: nothing can be promised.
        has_room: whether the disk has as much room as the node keeps free.
    """
    failed: dict[Reference, int] = {}
    asked = list(dict.fromkeys(references))
    if keep_s <= 0 or not has_room():
        return [], dict.fromkeys(asked, OUT_OF_RESOURCES)
    with write(engine) as connection:
        until = time.time() + keep_s
        for chunk in (asked[at : at + _MOST_AT_ONCE] for at in range(0, len(asked), _MOST_AT_ONCE)):
            connection.execute(
                update(instances)
                .where(
                    instances.c.sop_instance_uid.in_([uid for _, uid in chunk]),
                    instances.c.removed_at.is_(None),
                    func.coalesce(instances.c.keep_until, 0.0) < until,
                )
                .values(keep_until=until)
            )
    with engine.connect() as connection:
        for reference in asked:
            if (reason := _why_not(connection, blobs, reference)) is not None:
                failed[reference] = reason
    return [reference for reference in asked if reference not in failed], failed


def _why_not(connection: Connection, blobs: Blobs, reference: Reference) -> int | None:
    """Why the newest revision of an instance can't be promised; None if it can."""
    try:
        return _look_at(connection, blobs, reference)
    except FileNotFoundError:  # a duplicate has put another blob in its place since the row was read
        connection.rollback()
    try:
        return _look_at(connection, blobs, reference)
    except FileNotFoundError:
        return NO_SUCH_INSTANCE


def _look_at(connection: Connection, blobs: Blobs, reference: Reference) -> int | None:
    sop_class_uid, sop_instance_uid = reference
    newest = connection.execute(
        select(instances.c.sop_class_uid, instances.c.path, instances.c.digest, instances.c.removed_at)
        .where(instances.c.sop_instance_uid == sop_instance_uid)
        .order_by(instances.c.revision.desc())
        .limit(1)
    ).first()
    if newest is None or newest.removed_at is not None:
        return NO_SUCH_INSTANCE
    if newest.sop_class_uid != sop_class_uid:
        return CLASS_CONFLICT
    try:
        with blobs.fetch(newest.path) as path:
            digest = earlier_digest_of(path) if is_earlier(newest.digest) else digest_of(path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError):
        return PROCESSING_FAILURE
    return None if digest == newest.digest else PROCESSING_FAILURE


def owe_report(
    engine: Engine,
    transaction_uid: str,
    ae_title: str,
    host: str,
    committed: Sequence[Reference],
    failed: Mapping[Reference, int],
    *,
    wait_s: float,
) -> Report:
    """Write down a report that is owed. For `wait_s` it is left to the association that the request came over."""
    now = time.time()
    with write(engine) as connection:
        row_id = connection.execute(
            insert(commitment_reports)
            .values(
                transaction_uid=transaction_uid,
                ae_title=ae_title[:16],
                host=host,
                committed=json.dumps(committed),
                failed=json.dumps([[*reference, reason] for reference, reason in failed.items()]),
                state=DeliveryState.WAITING,
                attempts=0,
                not_before=now + wait_s,
                reason="",
                created_at=now,
            )
            .returning(commitment_reports.c.id)
        ).scalar_one()
        detail = f"{len(committed)} instances committed, {len(failed)} not"
        audit.add(connection, AuditEvent("commitment-requested", user=ae_title, host=host, detail=detail))
    return Report(row_id, transaction_uid, ae_title, host, tuple(committed), failed, 0)


def reports_due(engine: Engine) -> list[Report]:
    """The reports that are owed now, oldest first."""
    now = time.time()
    query = (
        select(commitment_reports)
        .where(
            commitment_reports.c.state == DeliveryState.WAITING,
            or_(commitment_reports.c.not_before <= now, commitment_reports.c.not_before > now + _LONGEST_WAIT_S),
        )
        .order_by(commitment_reports.c.id)
        .limit(_MOST_AT_ONCE)
    )
    with engine.connect() as connection:
        return [
            Report(
                row.id,
                row.transaction_uid,
                row.ae_title,
                row.host,
                tuple((class_uid, uid) for class_uid, uid in json.loads(row.committed)),
                {(class_uid, uid): reason for class_uid, uid, reason in json.loads(row.failed)},
                row.attempts,
            )
            for row in connection.execute(query)
        ]


def report_sent(engine: Engine, report: Report) -> None:
    """The modality has taken the report."""
    with write(engine) as connection:
        connection.execute(
            update(commitment_reports)
            .where(commitment_reports.c.id == report.id)
            .values(state=DeliveryState.SENT, reason="", sent_at=time.time())
        )


def report_failed(engine: Engine, report: Report, reason: str, *, hold: bool = False) -> None:
    """The modality could not be told: again after a growing wait, until it has been tried often enough."""
    attempts = report.attempts + 1
    held = hold or attempts >= _MOST_ATTEMPTS
    with write(engine) as connection:
        changed = connection.execute(
            update(commitment_reports)
            .where(commitment_reports.c.id == report.id, commitment_reports.c.state == DeliveryState.WAITING)
            .values(
                state=DeliveryState.HELD if held else DeliveryState.WAITING,
                attempts=attempts,
                not_before=time.time() + backoff_s(attempts, _FIRST_WAIT_S, _LONGEST_WAIT_S),
                reason=reason,
            )
        ).rowcount
        if changed and held:
            detail = f"transaction {report.transaction_uid}, not reported after {attempts} attempts; held: {reason}"
            audit.add(
                connection, AuditEvent("commitment-given-up", "failure", user=report.ae_title, host=report.host, detail=detail)
            )


def retry_held_reports(engine: Engine, ae_titles: Collection[str]) -> None:
    """Let the held reports to these modalities be tried again: the settings may say by now where they listen."""
    held = and_(commitment_reports.c.state == DeliveryState.HELD, commitment_reports.c.ae_title.in_(ae_titles))
    with engine.connect() as connection:
        if connection.execute(select(commitment_reports.c.id).where(held).limit(1)).first() is None:
            return
    with write(engine) as connection:
        connection.execute(update(commitment_reports).where(held).values(state=DeliveryState.WAITING, attempts=0, not_before=0))


def forget_old(engine: Engine, days: float) -> int:
    """Remove reports that were sent, or given up, so long ago: their modality has asked again, or never will; how many."""
    old = and_(
        commitment_reports.c.state.in_((DeliveryState.SENT, DeliveryState.HELD)),
        commitment_reports.c.created_at < time.time() - days * 86400,
    )
    with write(engine) as connection:
        return connection.execute(delete(commitment_reports).where(old)).rowcount
