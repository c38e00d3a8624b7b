"""The role `upload`: copies the instances in this host's spool to the bucket, oldest first.

For each instance: PUT, then the guarded change of its row, then the removal of the file. After a crash at any point it repeats
these steps: a PUT of the same key and bytes changes nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import structlog

from cxr_node.errors import BucketUnavailable, StoreError
from cxr_node.settings import Settings
from cxr_node.store import faults, lock
from cxr_node.store.backoff import backoff_s
from cxr_node.store.database import DatabaseTrouble, open_database
from cxr_node.store.files import consistency, spool
from cxr_node.store.files.spool import Waiting
from cxr_node.store.files.spool_id import has_spool, spool_name
from cxr_node.store.files.spooled_blobs import SpooledBlobs
from cxr_node.store.files.storage import blobs_of

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = structlog.get_logger()

_AT_ONCE = 4
_MOST = 64
_IDLE_WAIT_S = 0.2
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 30.0
_TIDIES_EVERY_S = 600.0
_SEEN_EVERY_S = 60.0
_UNDER_WAY_S = 3600.0
"""A younger file may not have its row yet."""


class Uploader:
    """Empties a spool; one for each data folder.

    Args:
        settings: the settings tree; `has_spool` is true of it.
        engine: the database.

    Attributes:
        trouble: why the last round failed; empty if it didn't.
    """

    def __init__(self, settings: Settings, engine: Engine) -> None:
        blobs = blobs_of(settings)
        assert isinstance(blobs, SpooledBlobs)
        self._engine, self._blobs = engine, blobs
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="upload")
        self.trouble = ""

    def close(self) -> None:
        """Wait for what is being uploaded."""
        self._threads.shutdown(cancel_futures=True)

    def upload_some(self) -> int:
        """Upload the oldest that wait; how many are uploaded.

        Raises:
            DatabaseTrouble: the database can't be used.
        """
        found = spool.waiting(self._engine, self._blobs.spool, _MOST)
        self.trouble = ""
        uploads = [self._threads.submit(self._upload, one) for one in found]
        done = 0
        for upload in uploads:
            try:
                done += upload.result()
            except OSError as error:  # of the bucket, or of the disk; the others are tried all the same
                self.trouble = str(error)
        return done

    def tidy(self) -> None:
        """Remove files that nobody needs: uploaded before a crash, or given up by another host.

        A file without a row goes to the bucket, whose sweep enters it.
        """
        for key in spool.given_up(self._engine, self._blobs.spool):
            self._blobs.local.delete(key)
            spool.forget(self._engine, key, self._blobs.spool)
        now = time.time()
        for blob in self._blobs.local.list("instances"):
            is_owned = spool.is_owned(self._engine, blob.key)
            if is_owned is False or (is_owned is None and now - blob.put_at < _UNDER_WAY_S):
                continue
            if self._blobs.bucket.size(blob.key) != blob.size_bytes:
                self._blobs.bucket.upload(blob.key, self._blobs.local.path(blob.key))
            self._blobs.local.delete(blob.key)

    def _upload(self, one: Waiting) -> bool:
        try:
            self._blobs.bucket.upload(one.key, self._blobs.local.path(one.key))
        except FileNotFoundError:
            return self._settle_missing(one)
        faults.point("object-uploaded", one.sop_instance_uid)
        if not spool.note_uploaded(self._engine, one.key, self._blobs.spool) and spool.is_owned(self._engine, one.key) is None:
            self._blobs.bucket.delete(one.key)  # its row gave it up meanwhile
        faults.point("upload-noted", one.sop_instance_uid)
        self._blobs.local.delete(one.key)
        return True

    def _settle_missing(self, one: Waiting) -> bool:
        """Its file is gone: another row has taken its place since it was asked for, or the disk is damaged."""
        if self._blobs.bucket.size(one.key) == one.size_bytes:
            return spool.note_uploaded(self._engine, one.key, self._blobs.spool)
        if consistency.note_spooled_gone(self._engine, one.key, self._blobs.spool):
            log.error("an image is gone from the spool: its sender has to send it again", sop_instance_uid=one.sop_instance_uid)
        return False


def run(settings: Settings, stop: threading.Event, ready: Callable[[], None]) -> None:
    """Run the role until `stop` is set; what is being uploaded is finished first.

    Raises:
        StoreError: there is no spool, another process empties it, or the database can't be used.
    """
    if not has_spool(settings):
        raise StoreError("There is no spool to upload from: set storage.spool = true, or don't start the role upload.")
    engine = open_database(settings)
    try:
        with lock.uploading(settings.node.data_dir):
            uploader = Uploader(settings, engine)
            try:
                ready()
                _work(uploader, engine, settings, stop)
            finally:
                uploader.close()
    finally:
        engine.dispose()


def _work(uploader: Uploader, engine: Engine, settings: Settings, stop: threading.Event) -> None:
    name = spool_name(settings.node.data_dir)
    troubles, tidy_at, seen_at, done = 0, 0.0, 0.0, 0
    while not stop.is_set():
        try:
            now = time.monotonic()
            if now >= seen_at:
                spool.note_seen(engine, name)
                seen_at = now + _SEEN_EVERY_S
            if now >= tidy_at:
                uploader.tidy()
                tidy_at = now + _TIDIES_EVERY_S
            done = uploader.upload_some()
            trouble = uploader.trouble
        except (DatabaseTrouble, OSError) as error:
            trouble = str(error) if isinstance(error, BucketUnavailable) else type(error).__name__
        if trouble:
            if not troubles:
                log.warning("images wait in the spool", reason=trouble)
            troubles += 1
            stop.wait(backoff_s(troubles, _FIRST_WAIT_S, _LONGEST_WAIT_S))
            continue
        if troubles:
            log.info("images are uploaded again")
        troubles = 0
        if not done:
            stop.wait(_IDLE_WAIT_S)
