"""The spool: received instances on this host's disk, until the role `upload` has put them into the bucket.

For networks that are slower than the modalities (`storage.spool`). An instance's row names the spool that alone has its blob,
and no spool once the bucket has it; that change of the row is guarded, so it happens once. The file goes after that. So a blob
is always where its row says; it may be in the other place, too, for a moment or after a crash.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sqlalchemy import Engine, insert, select, update

from cxr_node.security.nofollow import open_file
from cxr_node.store.blobs import Blob, LocalBlobs
from cxr_node.store.database import write
from cxr_node.store.schema import instances, spools

if TYPE_CHECKING:
    from cxr_node.store.bucket import BucketBlobs


class SpooledBlobs:
    """Blobs in a bucket, before which received files stay on this host's disk: the third implementation of `blobs.Blobs`.

    Args:
        bucket: where they go in the end.
        local: the data folder, under whose `instances` they wait.
        spool: the name of the spool.
        near: a folder for files that are being read, in the same filesystem.
        takes: whether received files go there; False: it is only emptied.
    """

    def __init__(self, bucket: BucketBlobs, local: LocalBlobs, spool: str, near: Path, *, takes: bool) -> None:
        self.bucket, self.local, self.spool = bucket, local, spool
        self._near, self._takes = near, takes

    def spool_of(self, key: str) -> str:
        """The spool, if a blob lies there."""
        return self.spool if self.local.size(key) is not None else ""

    def put(self, key: str, source: Path) -> Blob:
        """Keep a received file in the spool, flushed as in a data folder."""
        return self.local.put(key, source) if self._takes else self.bucket.put(key, source)

    def put_bytes(self, key: str, content: bytes) -> Blob:
        """Put what was made here into the bucket: nobody waits for that who could not wait."""
        return self.bucket.put_bytes(key, content)

    def open(self, key: str) -> BinaryIO:
        """The file in the spool, or a copy of the object."""
        try:
            return self.local.open(key)
        except FileNotFoundError:
            return self.bucket.open(key)

    @contextmanager
    def fetch(self, key: str) -> Iterator[Path]:
        """The file in the spool under another name, which lasts though the file is uploaded and goes; or a copy of the object."""
        with self._borrowed(key) as path:
            if path is not None:
                yield path
                return
        with self.bucket.fetch(key) as path:
            yield path

    @contextmanager
    def _borrowed(self, key: str) -> Iterator[Path | None]:
        self._near.mkdir(mode=0o700, exist_ok=True)
        path = self._near / f"{uuid.uuid4().hex}.dcm"
        try:
            self.local.link(key, path)
        except FileNotFoundError:
            yield None
            return
        try:
            descriptor = open_file(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # what removes leftovers leaves it alone
                yield path
            finally:
                os.close(descriptor)
        finally:
            path.unlink(missing_ok=True)

    def size(self, key: str) -> int | None:
        """Of the file, or of the object."""
        found = self.local.size(key)
        return self.bucket.size(key) if found is None else found

    def delete(self, key: str) -> None:
        """Remove the file if it is here, else the object. One that is in both places is left to the sweep of the bucket."""
        if self.local.size(key) is None:
            self.bucket.delete(key)
        else:
            self.local.delete(key)

    def list(self, prefix: str) -> Iterator[Blob]:
        """What either place has, each key once; times on the bucket's clock."""
        ahead_s = self.bucket.now() - time.time()
        here = {blob.key: blob for blob in self.local.list(prefix)}
        for blob in here.values():
            yield Blob(blob.key, blob.size_bytes, blob.put_at + ahead_s)
        for blob in self.bucket.list(prefix):
            if blob.key not in here:
                yield blob

    def now(self) -> float:
        """The bucket's clock."""
        return self.bucket.now()


@dataclass(frozen=True)
class Waiting:
    """An instance that is in the spool alone."""

    key: str
    size_bytes: int
    sop_instance_uid: str


def waiting(engine: Engine, spool: str, limit: int) -> list[Waiting]:
    """What has to be uploaded from a spool, the oldest first."""
    query = (
        select(instances.c.path, instances.c.size_bytes, instances.c.sop_instance_uid)
        .where(instances.c.spool == spool, instances.c.removed_at.is_(None))
        .order_by(instances.c.id)
        .limit(limit)
    )
    with engine.connect() as connection:
        return [Waiting(*row) for row in connection.execute(query)]


def note_uploaded(engine: Engine, key: str, spool: str) -> bool:
    """Record that the bucket has a blob; False: its row no longer says that only the spool has it."""
    mine = (instances.c.path == key, instances.c.spool == spool, instances.c.removed_at.is_(None))
    with write(engine) as connection:
        return bool(connection.execute(update(instances).where(*mine).values(spool="")).rowcount)


def is_owned(engine: Engine, key: str) -> bool | None:
    """Whether a row says that the bucket has a blob; None: no row has it any more, or it is given up."""
    query = select(instances.c.spool).where(instances.c.path == key, instances.c.removed_at.is_(None))
    with engine.connect() as connection:
        found = connection.execute(query).scalar()
    return None if found is None else found == ""


def given_up(engine: Engine, spool: str) -> list[str]:
    """The keys of a spool's blobs that retention, on whatever host, has given up."""
    query = select(instances.c.path).where(instances.c.spool == spool, instances.c.removed_at.is_not(None))
    with engine.connect() as connection:
        return list(connection.execute(query).scalars())


def forget(engine: Engine, key: str, spool: str) -> None:
    """Record that a spool no longer has a blob that retention gave up."""
    mine = (instances.c.path == key, instances.c.spool == spool, instances.c.removed_at.is_not(None))
    with write(engine) as connection:
        connection.execute(update(instances).where(*mine).values(spool=""))


def note_seen(engine: Engine, spool: str) -> None:
    """Record the host of a spool, and that its uploads run."""
    values = {"host": socket.gethostname()[:255], "seen_at": time.time()}
    with write(engine) as connection:
        if not connection.execute(update(spools).where(spools.c.name == spool).values(**values)).rowcount:
            connection.execute(insert(spools).values(name=spool, **values))
