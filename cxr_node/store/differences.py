"""Where files and rows don't agree, as after a restored database or a damaged disk; and what brings the rows into line.

Files without a row are for others to read: this room knows rows and names of files, not DICOM.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sqlalchemy import Connection, Engine, Table, and_, select, update

from cxr_node.records import DataFolder, DeliveryState, JobState
from cxr_node.store.blobs import LocalBlobs
from cxr_node.store.database import write
from cxr_node.store.digests import digest_of, earlier_digest_of, is_earlier
from cxr_node.store.schema import deliveries, instances, jobs, results

_IMAGE_GONE = "The image's file is gone from the data folder: send the image again, and this goes on by itself."
_BOTH_GONE = (
    "The result's file is gone from the data folder, and its image too: send the image again, and both are made again and sent."
)


class Kind(StrEnum):
    """What doesn't agree."""

    INSTANCE_WITHOUT_ROW = "instance without a row"
    INSTANCE_WITHOUT_FILE = "row of an instance whose file is gone"
    INSTANCE_OF_OTHER_SIZE = "instance of another size than its row says, its content as it was received"
    INSTANCE_CUT_OFF = "instance of another size than its row says"
    ORPHAN = "file that its row has given up"
    RESULT_WITHOUT_ROW = "result without a row"
    RESULT_WITHOUT_FILE = "row of a result whose file is gone"
    RESULT_CUT_OFF = "result of another size than its row says"


CURES = {
    Kind.INSTANCE_WITHOUT_ROW: "enter it, as when it was received",
    Kind.INSTANCE_WITHOUT_FILE: "note that it is gone; hold its job if it isn't done",
    Kind.INSTANCE_OF_OTHER_SIZE: "correct the row: an earlier version counted another file",
    Kind.INSTANCE_CUT_OFF: "move it to unparsed/; then as if it were gone",
    Kind.ORPHAN: "remove it: a crash came before that",
    Kind.RESULT_WITHOUT_ROW: "remove it: its job makes it again",
    Kind.RESULT_WITHOUT_FILE: "note that it is gone; if it isn't delivered, have its job make it again",
    Kind.RESULT_CUT_OFF: "remove it; then as if it were gone",
}
"""What mending does."""


@dataclass(frozen=True)
class Difference:
    """One of them. `path` is relative to the data folder; `row_id` None: there is no row."""

    kind: Kind
    path: str
    row_id: int | None = None


def find_differences(engine: Engine, folders: DataFolder, min_age_s: float) -> list[Difference]:
    """Compare every file with every row. Files younger than `min_age_s` seconds may be about to get their row: left out."""
    return [
        *_compare(
            engine,
            folders,
            instances,
            min_age_s,
            (Kind.INSTANCE_WITHOUT_ROW, Kind.INSTANCE_WITHOUT_FILE, Kind.INSTANCE_CUT_OFF),
        ),
        *_compare(engine, folders, results, min_age_s, (Kind.RESULT_WITHOUT_ROW, Kind.RESULT_WITHOUT_FILE, Kind.RESULT_CUT_OFF)),
    ]


def note_instance_gone(engine: Engine, row_id: int, key: str) -> bool:
    """Write down that an instance's file is gone. A job that needs it is held until it comes again.

    False: it has come again since, under another key, and nothing is written.
    """
    mine = and_(instances.c.id == row_id, instances.c.path == key, instances.c.removed_at.is_(None))
    with write(engine) as connection:
        if not connection.execute(update(instances).where(mine).values(removed_at=time.time())).rowcount:
            return False
        connection.execute(
            update(jobs)
            .where(jobs.c.instance_id == row_id, jobs.c.state.in_((JobState.NEW, JobState.HELD)))
            .values(state=JobState.HELD, reasons=json.dumps([_IMAGE_GONE]), finished_at=time.time())
        )
    return True


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
            .values(state=DeliveryState.HELD, reason="Its file is gone; it is being made again." if again else _BOTH_GONE)
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
    engine: Engine, folders: DataFolder, table: Table, min_age_s: float, kinds: tuple[Kind, Kind, Kind]
) -> Iterator[Difference]:
    without_row, without_file, cut_off = kinds
    blobs = LocalBlobs(folders)
    before = time.time() - min_age_s
    files = {blob.key: blob for blob in blobs.list((folders.instances if table is instances else folders.results).name)}
    owned, given_up = set(), set()
    with engine.connect() as connection:
        for row in connection.execute(select(table).order_by(table.c.id)):
            if row.removed_at is not None:
                given_up.add(row.path)
                continue
            owned.add(row.path)
            found = files.get(row.path)
            if found is None and blobs.size(row.path) is None:  # it may have come since
                yield Difference(without_file, row.path, row.id)
            elif found is not None and found.size_bytes != row.size_bytes:
                whole = table is instances and _is_as_received(folders.root / row.path, row.digest)
                yield Difference(Kind.INSTANCE_OF_OTHER_SIZE if whole else cut_off, row.path, row.id)
    strangers = [blob for key, blob in files.items() if key not in owned and blob.put_at <= before]
    for blob in sorted(strangers, key=lambda blob: blob.put_at):  # as they came: revisions get their numbers by it
        yield Difference(Kind.ORPHAN if blob.key in given_up else without_row, blob.key)


def _is_as_received(path: Path, digest: str) -> bool:
    try:
        return (earlier_digest_of(path) if is_earlier(digest) else digest_of(path)) == digest
    except (OSError, ValueError):
        return False
