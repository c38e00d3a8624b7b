"""Storage commitment of what modalities sent: which instances are safe here, and the reports that are owed."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, and_, delete, insert, or_, select, update

from cxr_node.commitment import CLASS_CONFLICT, NO_SUCH_INSTANCE
from cxr_node.records import AuditEvent, DataFolder, DeliveryState
from cxr_node.references import Reference
from cxr_node.store import audit
from cxr_node.store.backoff import backoff_s
from cxr_node.store.database import write
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


def judge(engine: Engine, folders: DataFolder, references: Sequence[Reference]) -> tuple[list[Reference], dict[Reference, int]]:
    """Which of these instances the node has safe on disk, and of the others why not."""
    committed: list[Reference] = []
    failed: dict[Reference, int] = {}
    with engine.connect() as connection:
        for reference in dict.fromkeys(references):
            sop_class_uid, sop_instance_uid = reference
            rows = connection.execute(
                select(instances.c.sop_class_uid, instances.c.path).where(
                    instances.c.sop_instance_uid == sop_instance_uid, instances.c.removed_at.is_(None)
                )
            ).all()
            if not any((folders.root / row.path).is_file() for row in rows):
                failed[reference] = NO_SUCH_INSTANCE
            elif all(row.sop_class_uid != sop_class_uid for row in rows):
                failed[reference] = CLASS_CONFLICT
            else:
                committed.append(reference)
    return committed, failed


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
        connection.execute(
            update(commitment_reports)
            .where(commitment_reports.c.id == report.id, commitment_reports.c.state == DeliveryState.WAITING)
            .values(
                state=DeliveryState.HELD if held else DeliveryState.WAITING,
                attempts=attempts,
                not_before=time.time() + backoff_s(attempts, _FIRST_WAIT_S, _LONGEST_WAIT_S),
                reason=reason,
            )
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
