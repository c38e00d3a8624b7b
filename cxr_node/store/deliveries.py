"""Results on their way: one row for each object and destination, claimed and ended by deliver."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, and_, or_, select, update

from cxr_node import faults
from cxr_node.commitment import Reference
from cxr_node.records import AuditEvent, Delivery, DeliveryState, ResultKind
from cxr_node.store import audit
from cxr_node.store.backoff import backoff_s
from cxr_node.store.database import write
from cxr_node.store.schema import deliveries, instances, jobs, results

_FIRST_WAIT_S, _LONGEST_WAIT_S = 5.0, 3600.0
_NO_DESTINATION = (
    "The settings no longer name this destination. Name it again, and it goes on by itself; or cancel this delivery "
    "(`cxr-node queue cancel --deliveries`)."
)

OUT_OF_RESOURCES = (0xA700, 0xA7FF)
"""C-STORE statuses that speak of the whole peer, not of the object (PS3.4 table B.2-1); both ends count."""


def claim(engine: Engine, destination: str, owner: str, limit: int, lease_s: float) -> list[Delivery]:
    """Take up to `limit` deliveries to a destination that are due, oldest first, for `lease_s` seconds.

    One whose lease lapsed (its sender died between sending and writing that down) is due again: it is sent twice
    rather than never, and as the same instance a PACS keeps it once.
    """
    now = time.time()
    with engine.connect() as connection:  # an idle sender looks without taking the write lock
        if connection.execute(select(deliveries.c.id).where(_due(destination, now)).limit(1)).first() is None:
            return []
    with write(engine) as connection:
        due = select(deliveries.c.id).where(_due(destination, now)).order_by(deliveries.c.id).limit(limit)
        if engine.dialect.name == "postgresql":
            due = due.with_for_update(skip_locked=True)
        # asked first: as part of the update, PostgreSQL may ask it more than once, and take more than `limit`
        chosen = connection.execute(due).scalars().all()
        ids = list(
            connection.execute(
                update(deliveries)
                .where(deliveries.c.id.in_(chosen))
                .values(
                    state=DeliveryState.SENDING,
                    attempts=deliveries.c.attempts + 1,
                    lease_owner=owner,
                    lease_until=now + lease_s,
                )
                .returning(deliveries.c.id)
            ).scalars()
        )
        rows = connection.execute(
            select(
                deliveries.c.id,
                results.c.job_id,
                deliveries.c.destination,
                results.c.kind,
                results.c.sop_instance_uid,
                results.c.sop_class_uid,
                results.c.transfer_syntax_uid,
                instances.c.study_instance_uid,
                instances.c.patient_id,
                results.c.path,
                deliveries.c.attempts,
                deliveries.c.created_at,
            )
            .join(results, deliveries.c.result_id == results.c.id)
            .join(jobs, results.c.job_id == jobs.c.id)
            .join(instances, jobs.c.instance_id == instances.c.id)
            .where(deliveries.c.id.in_(ids))
            .order_by(deliveries.c.id)
        ).mappings()
        claimed = [
            Delivery(
                **{
                    **row,
                    "kind": ResultKind(row["kind"]),
                    "created_at": datetime.fromtimestamp(row["created_at"], UTC),
                }
            )
            for row in rows
        ]
    faults.point("deliveries-claimed")
    return claimed


def renew(engine: Engine, owner: str, claimed: Sequence[Delivery], lease_s: float) -> None:
    """Keep claimed deliveries for another `lease_s` seconds."""
    with write(engine) as connection:
        connection.execute(
            update(deliveries)
            .where(
                deliveries.c.id.in_([delivery.id for delivery in claimed]),
                deliveries.c.state == DeliveryState.SENDING,
                deliveries.c.lease_owner == owner,
            )
            .values(lease_until=time.time() + lease_s)
        )


def mark_sent(
    engine: Engine, delivery: Delivery, status: int, *, to_commit: bool = False, sent_as: Reference | None = None
) -> None:
    """The destination has answered that it stored the object.

    Args:
        engine: the database.
        delivery: as it was claimed.
        status: of the C-STORE response.
        to_commit: the destination has yet to be asked whether it keeps it.
        sent_as: SOP class and instance UID under which it went; None: its own.
    """
    sop_class_uid, sop_instance_uid = sent_as or ("", "")
    another = f", as {sop_class_uid} {sop_instance_uid}" if sent_as else ""
    with write(engine) as connection:
        if connection.execute(
            update(deliveries)
            .where(_still_sending(delivery))
            .values(
                state=DeliveryState.COMMITTING if to_commit else DeliveryState.SENT,
                not_before=0,
                status=status,
                reason="",
                sent_at=time.time(),
                sent_sop_class_uid=sop_class_uid,
                sent_sop_instance_uid=sop_instance_uid,
                lease_owner="",
                lease_until=0,
            )
        ).rowcount:
            detail = f"{delivery.kind}, status 0x{status:04X}{another}"
            audit.add(connection, _event("result-sent", delivery, "success", detail))
    faults.point("delivery-noted", delivery.sop_instance_uid)


def sent_as(engine: Engine, destination: str, sop_instance_uid: str) -> Reference | None:
    """SOP class and instance UID under which a result went to a destination; None: its own, or it never went."""
    with engine.connect() as connection:
        found = connection.execute(
            select(deliveries.c.sent_sop_class_uid, deliveries.c.sent_sop_instance_uid)
            .join(results, deliveries.c.result_id == results.c.id)
            .where(
                results.c.sop_instance_uid == sop_instance_uid,
                deliveries.c.destination == destination,
                deliveries.c.sent_sop_instance_uid != "",
            )
        ).first()
    return None if found is None else (found[0], found[1])


def mark_failed(
    engine: Engine, delivery: Delivery, reason: str, max_attempts: int, status: int | None = None, *, hold: bool = False
) -> None:
    """Note a failed attempt: due again after a growing wait, held after `max_attempts`, or at once with `hold`.

    The audit log has the first failure and the last of a delivery, not each of a night's.
    """
    held = hold or delivery.attempts >= max_attempts
    with write(engine) as connection:
        changed = connection.execute(
            update(deliveries)
            .where(_still_sending(delivery))
            .values(
                state=DeliveryState.HELD if held else DeliveryState.WAITING,
                not_before=time.time() + backoff_s(delivery.attempts, _FIRST_WAIT_S, _LONGEST_WAIT_S),
                status=status,
                reason=reason,
                lease_owner="",
                lease_until=0,
            )
        ).rowcount
        if changed and (held or delivery.attempts == 1):
            event = "result-held" if held else "result-delayed"
            audit.add(connection, _event(event, delivery, "failure", f"{delivery.kind}: {reason}"))


def make_due(engine: Engine, destination: str) -> int:
    """Make due now what waits because the destination was in trouble; how many.

    What the destination refused for the object's own sake keeps its wait.
    """
    with write(engine) as connection:
        return connection.execute(
            update(deliveries)
            .where(
                deliveries.c.destination == destination,
                deliveries.c.state == DeliveryState.WAITING,
                deliveries.c.not_before > time.time(),
                or_(deliveries.c.status.is_(None), deliveries.c.status.between(*OUT_OF_RESOURCES)),
            )
            .values(not_before=0)
        ).rowcount


def hold_strays(engine: Engine, destinations: Collection[str]) -> int:
    """Hold what is meant for a destination that the settings no longer name, and let it go on when they do again.

    Args:
        engine: the database.
        destinations: the names that the settings have.

    Returns:
        how many are held anew.
    """
    stray = and_(
        deliveries.c.destination.not_in(destinations),
        or_(
            deliveries.c.state.in_((DeliveryState.WAITING, DeliveryState.COMMITTING)),
            and_(deliveries.c.state == DeliveryState.SENDING, deliveries.c.lease_until < time.time()),
        ),
    )
    returned = and_(
        deliveries.c.destination.in_(destinations),
        deliveries.c.state == DeliveryState.HELD,
        deliveries.c.reason == _NO_DESTINATION,
    )
    with engine.connect() as connection:
        if connection.execute(select(deliveries.c.id).where(or_(stray, returned)).limit(1)).first() is None:
            return 0
    with write(engine) as connection:
        connection.execute(
            update(deliveries).where(returned).values(state=DeliveryState.WAITING, attempts=0, not_before=0, reason="")
        )
        held = connection.execute(
            update(deliveries)
            .where(stray)
            .values(state=DeliveryState.HELD, reason=_NO_DESTINATION, lease_owner="", lease_until=0)
            .returning(deliveries.c.destination)
        ).scalars()
        counts = Counter(held)
        for name, count in counts.items():
            detail = f"{count} deliveries: {_NO_DESTINATION}"
            audit.add(connection, AuditEvent("result-held", "failure", user=name, detail=detail))
    return counts.total()


def give_back(engine: Engine, claimed: Sequence[Delivery]) -> None:
    """Return deliveries that were not attempted, the attempt not counted."""
    with write(engine) as connection:
        for delivery in claimed:
            connection.execute(
                update(deliveries)
                .where(_still_sending(delivery))
                .values(state=DeliveryState.WAITING, attempts=deliveries.c.attempts - 1, lease_owner="", lease_until=0)
            )


def _due(destination: str, now: float) -> Any:
    return and_(
        deliveries.c.destination == destination,
        deliveries.c.state.in_((DeliveryState.WAITING, DeliveryState.SENDING)),
        or_(
            and_(
                deliveries.c.state == DeliveryState.WAITING,
                # a wait longer than any: the clock was ahead when it was written, and has been set back since
                or_(deliveries.c.not_before <= now, deliveries.c.not_before > now + _LONGEST_WAIT_S),
            ),
            and_(deliveries.c.state == DeliveryState.SENDING, deliveries.c.lease_until < now),
        ),
    )


def _still_sending(delivery: Delivery) -> Any:
    """Guarded by the attempt too: a sender that was taken for dead changes nothing of its successor's."""
    return and_(
        deliveries.c.id == delivery.id,
        deliveries.c.state == DeliveryState.SENDING,
        deliveries.c.attempts == delivery.attempts,
    )


def _event(event: str, delivery: Delivery, outcome: str, detail: str) -> AuditEvent:
    return AuditEvent(
        event,
        outcome,
        user=delivery.destination,
        patient_id=delivery.patient_id,
        study_instance_uid=delivery.study_instance_uid,
        sop_instance_uid=delivery.sop_instance_uid,
        detail=detail,
    )
