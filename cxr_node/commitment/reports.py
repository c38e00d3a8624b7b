"""Storage commitment for modalities: which instances are safe here, and the reports that are due.

Over 300 lines: all that becomes of a report, from the request to its delivery.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, and_, delete, func, insert, or_, select, update

from cxr_node.commitment.datasets import CLASS_CONFLICT, NO_SUCH_INSTANCE, OUT_OF_RESOURCES, PROCESSING_FAILURE
from cxr_node.dicom.references import Reference
from cxr_node.peer_address import site_of
from cxr_node.records import AuditEvent, DeliveryState, quantity
from cxr_node.store.audit_log import audit
from cxr_node.store.backoff import backoff_s
from cxr_node.store.database import write
from cxr_node.store.files.blobs import Blobs
from cxr_node.store.files.digests import earlier_digest_of, file_digest, is_earlier
from cxr_node.store.schema import commitment_reports, instances

_FIRST_WAIT_S, _LONGEST_WAIT_S = 5.0, 3600.0
_MOST_ATTEMPTS = 30
_MOST_AT_ONCE = 500
_IN_ANOTHER_SPOOL = -1
_LONGEST_UPLOAD_S, _LOOKS_AGAIN_S = 60.0, 0.5
_MOST_DUE = 20
"""Reports that are read at once; one may refer to 10,000 objects, which takes some megabytes."""
_MOST_OPEN_OF_ONE, _MOST_OPEN = 100, 2000
"""Reports that are owed to one modality, or to one address, and to all."""


ASKED = "asked"
"""The state of a request on which nobody has decided yet: its references are in `committed`."""
_LEFT_S = 60.0
"""How long a request is left to the process that has it, before others decide."""


class TooManyOpen(Exception):  # noqa: N818 - an answer, no error of ours
    """So many reports are owed already that no more requests are taken."""


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


@dataclass(frozen=True)
class UndecidedRequest:
    """A request that has been written down, and on which nobody has decided yet.

    left_until: UTC seconds since the epoch, until when it is left to whoever has it.
    """

    id: int
    ae_title: str
    host: str
    left_until: float


def take_request(
    engine: Engine,
    transaction_uid: str,
    ae_title: str,
    host: str,
    references: Sequence[Reference],
    peer_of: Callable[[str], str] = site_of,
) -> UndecidedRequest:
    """Write a request down, which is all that its answer waits for.

    `peer_of`: who an address counts as (`Settings.peer_of`).

    Raises:
        TooManyOpen: so many reports are owed already that it isn't.
    """
    now = time.time()
    with write(engine) as connection:
        _check_open(connection, ae_title, host, peer_of)
        row_id = connection.execute(
            insert(commitment_reports)
            .values(
                transaction_uid=transaction_uid,
                ae_title=ae_title[:16],
                host=host,
                committed=json.dumps(list(dict.fromkeys(references))),
                failed="[]",
                state=ASKED,
                attempts=0,
                not_before=now + _LEFT_S,
                reason="",
                created_at=now,
            )
            .returning(commitment_reports.c.id)
        ).scalar_one()
    return UndecidedRequest(row_id, ae_title[:16], host, now + _LEFT_S)


def undecided(engine: Engine) -> list[UndecidedRequest]:
    """Requests on which a process that ended has left the decision to others, some of them."""
    table, now = commitment_reports, time.time()
    query = (
        select(table.c.id, table.c.ae_title, table.c.host, table.c.not_before)
        .where(table.c.state == ASKED, or_(table.c.not_before <= now, table.c.not_before > now + _LONGEST_WAIT_S))
        .order_by(table.c.id)
        .limit(_MOST_DUE)
    )
    with engine.connect() as connection:
        return [UndecidedRequest(*row) for row in connection.execute(query)]


def decide(
    engine: Engine,
    blobs: Blobs,
    asked: UndecidedRequest,
    *,
    keep_s: float,
    has_room: Callable[[], bool],
    wait_s: float,
    between: Callable[[], None] = lambda: None,
) -> Report | None:
    """Promise to keep what a request names and what is safe here, and record the report that is owed.

    Args:
        engine: the database.
        blobs: where instances are.
        asked: the request; it is left to this process while that goes on.
        keep_s: see `promise_to_keep`.
        has_room: likewise.
        wait_s: how long the report is left to the association of the request.
        between: called between two instances; may raise to leave the decision to others.

    Returns:
        the report; None if another process has the request, or has decided.
    """
    left_until = _keep_for_us(engine, asked.id, asked.left_until)
    if left_until is None:
        return None

    def go_on() -> None:
        nonlocal left_until
        between()
        if left_until is not None and left_until - time.time() < _LEFT_S / 2:
            left_until = _keep_for_us(engine, asked.id, left_until)

    table = commitment_reports
    with engine.connect() as connection:
        row = connection.execute(select(table.c.transaction_uid, table.c.committed).where(table.c.id == asked.id)).one()
    references = [(class_uid, uid) for class_uid, uid in json.loads(row.committed)]
    committed, failed = promise_to_keep(engine, blobs, references, keep_s, has_room, go_on)
    with write(engine) as connection:
        changed = connection.execute(
            update(table)
            .where(table.c.id == asked.id, table.c.state == ASKED, table.c.not_before == left_until)
            .values(
                committed=json.dumps(committed),
                failed=json.dumps([[*reference, reason] for reference, reason in failed.items()]),
                state=DeliveryState.WAITING,
                not_before=time.time() + wait_s,
            )
        ).rowcount
        if not changed:
            return None
        detail = f"{quantity(len(committed), 'instance')} committed, {len(failed)} not"
        audit.add(connection, AuditEvent("commitment-requested", user=asked.ae_title, host=asked.host, detail=detail))
    return Report(asked.id, row.transaction_uid, asked.ae_title, asked.host, tuple(committed), failed, 0)


def _keep_for_us(engine: Engine, row_id: int, left_until: float) -> float | None:
    """Have a request left to this process for longer; until when, or None if another process has it."""
    table, until = commitment_reports, time.time() + _LEFT_S
    mine = and_(table.c.id == row_id, table.c.state == ASKED, table.c.not_before == left_until)
    with write(engine) as connection:
        return until if connection.execute(update(table).where(mine).values(not_before=until)).rowcount else None


def _check_open(connection: Connection, ae_title: str, host: str, peer_of: Callable[[str], str]) -> None:
    """See whether another report may be owed.

    Raises:
        TooManyOpen: it may not.
    """
    table = commitment_reports
    is_open = table.c.state.in_((DeliveryState.WAITING, ASKED))
    counted = select(table.c.ae_title, table.c.host, func.count()).where(is_open).group_by(table.c.ae_title, table.c.host)
    rows, peer = connection.execute(counted).all(), peer_of(host)
    for what, most, count in (
        ("this sender", _MOST_OPEN_OF_ONE, sum(count for title, _, count in rows if title == ae_title[:16])),
        ("this address", _MOST_OPEN_OF_ONE, sum(count for _, other, count in rows if peer_of(other) == peer)),
        ("all senders", _MOST_OPEN, sum(count for _, _, count in rows)),
    ):
        if count >= most:
            raise TooManyOpen(f"{most} reports of storage commitment to {what} are open already")


def promise_to_keep(
    engine: Engine,
    blobs: Blobs,
    references: Sequence[Reference],
    keep_s: float,
    has_room: Callable[[], bool],
    between: Callable[[], None] = lambda: None,
) -> tuple[list[Reference], dict[Reference, int]]:
    """Promise to keep these instances for `keep_s` seconds; return those promised, and the failure reasons of the others.

    An instance is promised if the content of its newest revision is what was received: its blob is read to its end. The promise
    is recorded first, so that retention keeps the blobs from then on.

    Args:
        engine: the database.
        blobs: where instances are.
        references: what a modality asks for.
        keep_s: how long instances stay; 0: nothing can be promised.
        has_room: whether free disk space is above the node's minimum.
        between: called between two instances.
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
    deadline = time.monotonic() + _LONGEST_UPLOAD_S
    for reference in asked:
        while True:
            between()
            with engine.connect() as connection:
                reason = _why_not(connection, blobs, reference)
            if reason != _IN_ANOTHER_SPOOL or time.monotonic() >= deadline:
                break
            time.sleep(_LOOKS_AGAIN_S)  # it is uploaded in a moment, or that host is in trouble
        if reason is not None:
            failed[reference] = PROCESSING_FAILURE if reason == _IN_ANOTHER_SPOOL else reason
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
        select(instances.c.sop_class_uid, instances.c.path, instances.c.digest, instances.c.removed_at, instances.c.spool)
        .where(instances.c.sop_instance_uid == sop_instance_uid, instances.c.unconfirmed == 0)
        .order_by(instances.c.revision.desc())
        .limit(1)
    ).first()
    if newest is None or newest.removed_at is not None:
        return NO_SUCH_INSTANCE
    if newest.sop_class_uid != sop_class_uid:
        return CLASS_CONFLICT
    if newest.spool not in ("", blobs.spool):
        return _IN_ANOTHER_SPOOL
    try:
        with blobs.fetch(newest.path) as path:
            digest = earlier_digest_of(path) if is_earlier(newest.digest) else file_digest(path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError):
        return PROCESSING_FAILURE
    return None if digest == newest.digest else PROCESSING_FAILURE


def reports_due(engine: Engine) -> list[Report]:
    """Reports that are owed now, some of them: what has been due for longest first."""
    now = time.time()
    query = (
        select(commitment_reports)
        .where(
            commitment_reports.c.state == DeliveryState.WAITING,
            or_(commitment_reports.c.not_before <= now, commitment_reports.c.not_before > now + _LONGEST_WAIT_S),
        )
        .order_by(commitment_reports.c.not_before, commitment_reports.c.id)
        .limit(_MOST_DUE)
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
    """The report was not delivered: retry after a growing delay, up to a limit."""
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


def postpone(engine: Engine, report: Report) -> None:
    """Let the other reports to the same modality, which gives no answer, wait as this one does."""
    same = and_(
        commitment_reports.c.ae_title == report.ae_title,
        commitment_reports.c.host == report.host,
        commitment_reports.c.state == DeliveryState.WAITING,
    )
    until = time.time() + backoff_s(report.attempts + 1, _FIRST_WAIT_S, _LONGEST_WAIT_S)
    with write(engine) as connection:
        connection.execute(
            update(commitment_reports).where(same, commitment_reports.c.not_before < until).values(not_before=until)
        )


def retry_held_reports(engine: Engine, ae_titles: Collection[str]) -> None:
    """Retry the held reports to these modalities: the settings may name their port now."""
    held = and_(commitment_reports.c.state == DeliveryState.HELD, commitment_reports.c.ae_title.in_(ae_titles))
    with engine.connect() as connection:
        if connection.execute(select(commitment_reports.c.id).where(held).limit(1)).first() is None:
            return
    with write(engine) as connection:
        connection.execute(update(commitment_reports).where(held).values(state=DeliveryState.WAITING, attempts=0, not_before=0))


def forget_old(engine: Engine, days: float) -> int:
    """Remove reports that were sent or given up this long ago; return how many."""
    old = and_(
        commitment_reports.c.state.in_((DeliveryState.SENT, DeliveryState.HELD)),
        commitment_reports.c.created_at < time.time() - days * 86400,
    )
    with write(engine) as connection:
        return connection.execute(delete(commitment_reports).where(old)).rowcount
