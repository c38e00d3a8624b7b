"""The files of the spool, with the bucket behind it as one place: see `store.files.spool`."""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from cxr_node.security.nofollow import open_file
from cxr_node.store.files.blobs import Blob, LocalBlobs

if TYPE_CHECKING:
    from cxr_node.store.files.bucket import BucketBlobs


class SpooledBlobs:
    """Blobs in a bucket with a spool on this host's disk for received files: the third implementation of `blobs.Blobs`.

    Args:
        bucket: where the blobs end up.
        local: the data folder; blobs wait under its `instances`.
        spool: the name of the spool.
        near: a folder in the same filesystem for links to files that are being read.
        takes: whether received files go to the spool; False: the spool is only emptied.
    """

    def __init__(self, bucket: BucketBlobs, local: LocalBlobs, spool: str, near: Path, *, takes: bool) -> None:
        self.bucket, self.local, self.spool = bucket, local, spool
        self._near, self._takes = near, takes

    def spool_of(self, key: str) -> str:
        """The name of the spool if it holds the blob, else an empty text."""
        return self.spool if self.local.size(key) is not None else ""

    def put(self, key: str, source: Path) -> Blob:
        """Move a received file into the spool, and flush it to disk as in a data folder."""
        return self.local.put(key, source) if self._takes else self.bucket.put(key, source)

    def put_bytes(self, key: str, content: bytes) -> Blob:
        """Put content that this host produced straight into the bucket: no modality waits for it."""
        return self.bucket.put_bytes(key, content)

    def open(self, key: str) -> BinaryIO:
        """Open the file in the spool, or a copy of the object in the bucket."""
        try:
            return self.local.open(key)
        except FileNotFoundError:
            return self.bucket.open(key)

    @contextmanager
    def fetch(self, key: str) -> Iterator[Path]:
        """A path to the content: a hard link, which survives the upload and deletion of the file, or a copy of the object."""
        with self._linked(key) as path:
            if path is not None:
                yield path
                return
        with self.bucket.fetch(key) as path:
            yield path

    @contextmanager
    def _linked(self, key: str) -> Iterator[Path | None]:
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
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # the removal of leftovers skips locked files
                yield path
            finally:
                os.close(descriptor)
        finally:
            path.unlink(missing_ok=True)

    def size(self, key: str) -> int | None:
        """The size in bytes of the file, or of the object; None if neither exists."""
        found = self.local.size(key)
        return self.bucket.size(key) if found is None else found

    def delete(self, key: str) -> None:
        """Delete the file, or the object if there is no file. The sweep of the bucket deletes a second copy there."""
        if self.local.size(key) is None:
            self.bucket.delete(key)
        else:
            self.local.delete(key)

    def list(self, prefix: str) -> Iterator[Blob]:
        """List the blobs of both places, each key once, with times of the bucket's clock."""
        ahead_s = self.bucket.now() - time.time()
        here = {blob.key: blob for blob in self.local.list(prefix)}
        for blob in here.values():
            yield Blob(blob.key, blob.size_bytes, blob.put_at + ahead_s)
        for blob in self.bucket.list(prefix):
            if blob.key not in here:
                yield blob

    def now(self) -> float:
        """The time by the bucket's clock, in seconds since the epoch."""
        return self.bucket.now()
