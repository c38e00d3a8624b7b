"""The queue of deliveries: one row for each object and destination, claimed and ended by deliver.

Over 300 lines: every change of a delivery's state by the deliver role.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, and_, case, delete, false, or_, select, update

from cxr_node.dicom.references import Reference
from cxr_node.records import AuditEvent, Delivery, DeliveryState, ResultKind, quantity
from cxr_node.store import faults
from cxr_node.store.audit_log import audit
from cxr_node.store.backoff import backoff_s
from cxr_node.store.database import write
from cxr_node.store.queue import leases
from cxr_node.store.queue.corrections import cancel_superseded
from cxr_node.store.schema import commitment_asks, deliveries, instances, jobs, results

_FIRST_WAIT_S, _LONGEST_WAIT_S = 5.0, 3600.0
NO_DESTINATION = "The settings no longer name this destination. Name it again and restart: it then continues by itself."
NOT_SENT_THERE = (
    "The settings no longer send this kind of result there. Add it to `send` again and restart: it then continues by itself."
)

OUT_OF_RESOURCES = (0xA700, 0xA7FF)
"""C-STORE statuses that speak of the whole peer, not of the object (PS3.4 table B.2-1); both ends count."""


def claim(engine: Engine, destination: str, owner: str, limit: int, lease_s: float, *, delay_s: float = 0.0) -> list[Delivery]:
    """Take up to `limit` deliveries to a destination that are due, oldest first, for `lease_s` seconds.

    None is due before it is `delay_s` seconds old.

    One whose lease lapsed (its sender died between sending and writing that down) is due again: it is sent twice
    rather than never, and as the same instance a PACS keeps it once.

    Over 60 lines: two statements, each written out.
    """
    now = time.time()

    def due(connection: Connection) -> Any:
        is_due = _due(destination, now, leases.lapsed(connection, deliveries, lease_s))
        if delay_s > 0:  # later than now: the clock was ahead when it was written, and has been set back since
            is_due = and_(is_due, or_(deliveries.c.created_at <= now - delay_s, deliveries.c.created_at > now))
        return is_due

    with engine.connect() as connection:  # an idle sender looks without taking the write lock
        if connection.execute(select(deliveries.c.id).where(due(connection)).limit(1)).first() is None:
            return []
    with write(engine) as connection:
        cancel_superseded(connection, destination, leases.lapsed(connection, deliveries, lease_s))
        query = select(deliveries.c.id).where(due(connection)).order_by(deliveries.c.id).limit(limit)
        if engine.dialect.name == "postgresql":
            query = query.with_for_update(skip_locked=True)
        # asked first: as part of the update, PostgreSQL may ask it more than once, and take more than `limit`
        chosen = connection.execute(query).scalars().all()
        ids = list(
            connection.execute(
                update(deliveries)
                .where(deliveries.c.id.in_(chosen))
                .values(
                    state=DeliveryState.SENDING,
                    # its sender died, perhaps while it waited for the response
                    unanswered=case((deliveries.c.state == DeliveryState.SENDING, 1), else_=deliveries.c.unanswered),
                    attempts=deliveries.c.attempts + 1,
                    lease_owner=owner,
                    **leases.until(connection, lease_s),
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
                deliveries.c.unanswered,
                deliveries.c.sent_at.is_not(None).label("was_sent"),
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
                    "unanswered": bool(row["unanswered"]),
                    "was_sent": bool(row["was_sent"]),
                    "created_at": datetime.fromtimestamp(row["created_at"], UTC),
                }
            )
            for row in rows
        ]
        # told once for each study, when its first delivery is tried for the first time
        begun = {one.study_instance_uid: one for one in reversed(claimed) if one.attempts == 1}
        told = [_event("transfer-begun", one, "success", f"{one.kind}") for one in reversed(begun.values())]
        audit.add(connection, *(replace(one, sop_instance_uid="") for one in told))
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
            .values(**leases.until(connection, lease_s))
        )


def mark_sent(
    engine: Engine,
    delivery: Delivery,
    status: int,
    *,
    to_commit: bool = False,
    warning: str = "",
    sent_as: Reference | None = None,
) -> None:
    """The destination has answered that it stored the object.

    Args:
        engine: the database.
        delivery: as claimed.
        status: of the C-STORE response.
        to_commit: the destination has yet to be asked whether it keeps the object.
        warning: what it had to say about the object.
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
                unanswered=0,
                missing=0,
            )
        ).rowcount:
            # what is reported under an earlier transaction is of what was there before
            connection.execute(delete(commitment_asks).where(commitment_asks.c.delivery_id == delivery.id))
            detail = f"{delivery.kind}, status 0x{status:04X}{another}"
            audit.add(connection, _event("result-sent", delivery, "success", detail))
            if warning:
                audit.add(connection, _event("result-warning", delivery, "success", f"{delivery.kind}: {warning}"))
    faults.point("delivery-noted", delivery.sop_instance_uid)


def note_unanswered(engine: Engine, delivery: Delivery) -> None:
    """The object was on its way when the sender was stopped: the destination may have stored it."""
    with write(engine) as connection:
        connection.execute(update(deliveries).where(_still_sending(delivery)).values(unanswered=1))


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
    engine: Engine,
    delivery: Delivery,
    reason: str,
    max_attempts: int,
    status: int | None = None,
    *,
    hold: bool = False,
    unanswered: bool = False,
    for_audit: str = "",
) -> None:
    """Note a failed attempt: due again after a growing wait, held after `max_attempts`, or at once with `hold`.

    `unanswered`: the object was sent, and no response came: the destination may have it. That is remembered until it is sent.
    `for_audit`: the reason without the destination's own words, which may name a patient; empty: it has none.

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
                failed_at=time.time(),
                lease_owner="",
                lease_until=0,
                unanswered=1 if unanswered else deliveries.c.unanswered,
            )
        ).rowcount
        if changed and (held or delivery.attempts == 1):
            event = "result-held" if held else "result-delayed"
            audit.add(connection, _event(event, delivery, "failure", f"{delivery.kind}: {for_audit or reason}"))
        if changed:
            cancel_superseded(connection, delivery.destination, false())


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


def cancel_unrequested(engine: Engine, asked: Mapping[str, Collection[ResultKind]]) -> int:
    """Cancel deliveries that the settings no longer require, and revive them when they do again.

    Args:
        engine: the database.
        asked: the destinations that the settings name, with the kinds that each is sent.

    Returns:
        how many end.
    """
    of_another_kind = [
        and_(deliveries.c.destination == name, _kind().not_in([str(kind) for kind in kinds])) for name, kinds in asked.items()
    ]

    def ending(connection: Connection) -> dict[str, Any]:
        lapsed = and_(deliveries.c.state == DeliveryState.SENDING, leases.lapsed(connection, deliveries, leases.DELIVERY_S))
        waiting = or_(deliveries.c.state.in_((DeliveryState.WAITING, DeliveryState.HELD)), lapsed)
        to_none = and_(deliveries.c.destination.not_in(asked), or_(waiting, deliveries.c.state == DeliveryState.COMMITTING))
        return {NO_DESTINATION: to_none, NOT_SENT_THERE: and_(waiting, or_(false(), *of_another_kind))}

    returned = and_(
        deliveries.c.destination.in_(asked),
        ~or_(false(), *of_another_kind),
        deliveries.c.state.in_((DeliveryState.CANCELLED, DeliveryState.HELD)),
        was_unrequested(),
        deliveries.c.result_id.in_(select(results.c.id).where(results.c.removed_at.is_(None))),
    )
    with engine.connect() as connection:
        any_of_them = or_(returned, *ending(connection).values())
        if connection.execute(select(deliveries.c.id).where(any_of_them).limit(1)).first() is None:
            return 0
    ended = 0
    with write(engine) as connection:
        connection.execute(
            update(deliveries).where(returned).values(state=DeliveryState.WAITING, attempts=0, not_before=0, reason="")
        )
        for reason, these in ending(connection).items():
            names = connection.execute(
                update(deliveries)
                .where(these)
                .values(
                    state=DeliveryState.CANCELLED,
                    reason=reason,
                    lease_owner="",
                    lease_until=0,
                    unanswered=case((deliveries.c.state == DeliveryState.SENDING, 1), else_=deliveries.c.unanswered),
                )
                .returning(deliveries.c.destination)
            ).scalars()
            for name, count in Counter(names).items():
                ended += count
                event = AuditEvent(
                    "result-cancelled", "failure", user=name, detail=f"{quantity(count, 'delivery', 'deliveries')}: {reason}"
                )
                audit.add(connection, event)
    return ended


def was_unrequested() -> Any:
    """The condition that a delivery was cancelled because the settings no longer required it."""
    return or_(*(deliveries.c.reason.startswith(reason.partition(".")[0]) for reason in (NO_DESTINATION, NOT_SENT_THERE)))


def _kind() -> Any:
    return select(results.c.kind).where(results.c.id == deliveries.c.result_id).scalar_subquery()


def give_back(engine: Engine, claimed: Sequence[Delivery]) -> None:
    """Return deliveries that were not attempted, the attempt not counted."""
    with write(engine) as connection:
        for delivery in claimed:
            connection.execute(
                update(deliveries)
                .where(_still_sending(delivery))
                .values(state=DeliveryState.WAITING, attempts=deliveries.c.attempts - 1, lease_owner="", lease_until=0)
            )


def _due(destination: str, now: float, lapsed: Any) -> Any:
    return and_(
        deliveries.c.destination == destination,
        deliveries.c.state.in_((DeliveryState.WAITING, DeliveryState.SENDING)),
        or_(
            and_(
                deliveries.c.state == DeliveryState.WAITING,
                # a wait longer than any: the clock was ahead when it was written, and has been set back since
                or_(deliveries.c.not_before <= now, deliveries.c.not_before > now + _LONGEST_WAIT_S),
            ),
            and_(deliveries.c.state == DeliveryState.SENDING, lapsed),
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
