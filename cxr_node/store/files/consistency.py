"""Finds inconsistencies of files and rows, as after a restored database or a damaged disk, and names their repair.

The store knows rows and file names, not DICOM: `node.repair` reads files without a row.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import ColumnElement, Connection, Engine, Table, and_, not_, or_, select, update

from cxr_node.errors import BucketUnavailable
from cxr_node.records import DeliveryState, JobState
from cxr_node.store.database import write
from cxr_node.store.files.blobs import Blobs
from cxr_node.store.files.digests import earlier_digest_of, file_digest, is_earlier
from cxr_node.store.queue import leases
from cxr_node.store.queue.resend import BEING_MADE
from cxr_node.store.schema import deliveries, instances, jobs, results

_IMAGE_GONE = "The image's file is gone from the data folder: send the image again; the job then continues."
_BOTH_GONE = (
    "The result's file is gone from the data folder, and its image too: send the image again, and both are made again and sent."
)


class DifferenceKind(StrEnum):
    """What doesn't agree."""

    INSTANCE_WITHOUT_ROW = "instance without a row"
    INSTANCE_WITHOUT_FILE = "row of an instance whose file is gone"
    INSTANCE_OF_OTHER_SIZE = "instance whose size differs from its row, with the content that was received"
    INSTANCE_CUT_OFF = "instance whose size differs from its row"
    ORPHAN = "file that its row no longer references"
    RESULT_WITHOUT_ROW = "result without a row"
    RESULT_WITHOUT_FILE = "row of a result whose file is gone"
    RESULT_CUT_OFF = "result whose size differs from its row"


CURES = {
    DifferenceKind.INSTANCE_WITHOUT_ROW: "add the row, as on reception",
    DifferenceKind.INSTANCE_WITHOUT_FILE: "mark it as gone; hold its job if it is not done",
    DifferenceKind.INSTANCE_OF_OTHER_SIZE: "correct the row: an earlier version recorded another size",
    DifferenceKind.INSTANCE_CUT_OFF: "move it to unparsed/, and mark it as gone",
    DifferenceKind.ORPHAN: "remove it: a crash prevented that",
    DifferenceKind.RESULT_WITHOUT_ROW: "remove it: its job makes it again",
    DifferenceKind.RESULT_WITHOUT_FILE: "mark it as gone; if it is not delivered, its job makes it again",
    DifferenceKind.RESULT_CUT_OFF: "remove it, and mark it as gone",
}
"""What mending does."""


@dataclass(frozen=True)
class Difference:
    """One of them. `path` is relative to the data folder; `row_id` None: there is no row."""

    kind: DifferenceKind
    path: str
    row_id: int | None = None


def find_differences(engine: Engine, blobs: Blobs, min_age_s: float) -> list[Difference]:
    """Compare every file with every row. Files younger than `min_age_s` seconds may be about to get their row: left out."""
    return [
        *_compare(
            engine,
            blobs,
            instances,
            min_age_s,
            (DifferenceKind.INSTANCE_WITHOUT_ROW, DifferenceKind.INSTANCE_WITHOUT_FILE, DifferenceKind.INSTANCE_CUT_OFF),
        ),
        *_compare(
            engine,
            blobs,
            results,
            min_age_s,
            (DifferenceKind.RESULT_WITHOUT_ROW, DifferenceKind.RESULT_WITHOUT_FILE, DifferenceKind.RESULT_CUT_OFF),
        ),
    ]


def note_instance_gone(engine: Engine, row_id: int, key: str) -> bool:
    """Write down that an instance's file is gone. A job that needs it is held until it comes again.

    False: it has come again since, under another key, and nothing is written.
    """
    mine = and_(instances.c.id == row_id, instances.c.path == key, instances.c.removed_at.is_(None))
    with write(engine) as connection:
        if not connection.execute(update(instances).where(mine).values(removed_at=time.time(), spool="")).rowcount:
            return False
        nobody_has_it = and_(jobs.c.state == JobState.RUNNING, leases.is_ended(jobs))
        is_open = or_(jobs.c.state == JobState.NEW, continues_with_its_file(), nobody_has_it)
        connection.execute(
            update(jobs)
            .where(jobs.c.instance_id == row_id, is_open)
            .values(
                state=JobState.HELD, reasons=json.dumps([_IMAGE_GONE]), finished_at=time.time(), lease_owner="", lease_until=0
            )
        )
    return True


def continues_with_its_file() -> ColumnElement[bool]:
    """Whether a held job continues when its image arrives again: every one that reception did not leave to a person.

    A job that reception left to a person was never begun, and keeps its own reason while the file is gone.
    """
    left_to_a_person = and_(jobs.c.attempts == 0, jobs.c.reasons.not_in(("[]", json.dumps([_IMAGE_GONE]))))
    return and_(jobs.c.state == JobState.HELD, not_(left_to_a_person))


def note_spooled_gone(engine: Engine, key: str, spool: str) -> bool:
    """As `note_instance_gone`, of an instance that the spool of this host should have."""
    query = select(instances.c.id).where(instances.c.path == key, instances.c.spool == spool)
    with engine.connect() as connection:
        row_id = connection.execute(query).scalar()
    return row_id is not None and note_instance_gone(engine, row_id, key)


def correct_size(engine: Engine, row_id: int, key: str, size_bytes: int) -> None:
    """Write down the size of an instance's blob, which is whole."""
    with write(engine) as connection:
        mine = and_(instances.c.id == row_id, instances.c.path == key)
        connection.execute(update(instances).where(mine).values(size_bytes=size_bytes))


def note_result_gone(engine: Engine, row_id: int, key: str) -> bool:
    """Write down that a result's file is gone. One still to be delivered is made again, once its image is there.

    False: it has been made again since, under another key, and nothing is written.
    """
    mine = and_(results.c.id == row_id, results.c.path == key, results.c.removed_at.is_(None))
    with write(engine) as connection:
        if not connection.execute(update(results).where(mine).values(removed_at=time.time())).rowcount:
            return False
        open_states = (DeliveryState.WAITING, DeliveryState.HELD, DeliveryState.SENDING)
        undelivered = select(deliveries.c.id).where(deliveries.c.result_id == row_id, deliveries.c.state.in_(open_states))
        if connection.execute(undelivered.limit(1)).first() is None:
            return True
        again = _redo(connection, row_id)
        connection.execute(
            update(deliveries)
            .where(deliveries.c.result_id == row_id, deliveries.c.state.in_(open_states))
            .values(state=DeliveryState.HELD, reason=BEING_MADE if again else _BOTH_GONE)
        )
    return True


def _redo(connection: Connection, result_id: int) -> bool:
    """Have the job of a result done again: now, or, where its image is gone too, once that has come again."""
    job_id = select(results.c.job_id).where(results.c.id == result_id).scalar_subquery()
    image = (
        select(instances.c.id)
        .join(jobs, jobs.c.instance_id == instances.c.id)
        .where(jobs.c.id == job_id, instances.c.removed_at.is_(None))
    )
    is_there = connection.execute(image.with_for_update(of=instances)).first() is not None
    state, reasons = (JobState.NEW, []) if is_there else (JobState.HELD, [_IMAGE_GONE])
    connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.state.in_((JobState.DONE, JobState.REJECTED)))
        .values(state=state, attempts=0, not_before=0, reasons=json.dumps(reasons), finished_at=None)
    )
    return is_there


def _compare(
    engine: Engine, blobs: Blobs, table: Table, min_age_s: float, kinds: tuple[DifferenceKind, DifferenceKind, DifferenceKind]
) -> Iterator[Difference]:
    without_row, without_file, cut_off = kinds
    before = blobs.now() - min_age_s
    files = {blob.key: blob for blob in blobs.list(table.name)}
    owned, given_up = set(), set()
    with engine.connect() as connection:
        for row in connection.execute(select(table).order_by(table.c.id)):
            if row.removed_at is not None:
                given_up.add(row.path)
                continue
            owned.add(row.path)
            if table is instances and row.spool not in ("", blobs.spool):  # another host's spool has it
                continue
            found = files.get(row.path)
            if found is None and blobs.size(row.path) is None:  # it may have come since
                yield Difference(without_file, row.path, row.id)
            elif found is not None and found.size_bytes != row.size_bytes:
                whole = table is instances and _is_as_received(blobs, row.path, row.digest)
                yield Difference(DifferenceKind.INSTANCE_OF_OTHER_SIZE if whole else cut_off, row.path, row.id)
    strangers = [blob for key, blob in files.items() if key not in owned and blob.put_at <= before]
    for blob in sorted(strangers, key=lambda blob: blob.put_at):  # as they came: revisions get their numbers by it
        yield Difference(DifferenceKind.ORPHAN if blob.key in given_up else without_row, blob.key)


def _is_as_received(blobs: Blobs, key: str, digest: str) -> bool:
    try:
        with blobs.fetch(key) as path:
            return (earlier_digest_of(path) if is_earlier(digest) else file_digest(path)) == digest
    except BucketUnavailable:
        raise
    except (OSError, ValueError):
        return False
