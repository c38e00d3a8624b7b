"""Chooses where blobs are stored: the data folder, or a bucket with or without a spool. The data folder loads nothing of S3."""

from __future__ import annotations

import os
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from cxr_node.errors import BucketUnavailable, StoreError
from cxr_node.records import DataFolder
from cxr_node.settings import Settings
from cxr_node.store.files.blobs import Blobs, LocalBlobs
from cxr_node.store.files.spool_id import has_spool, spool_name

if TYPE_CHECKING:
    from cxr_node.store.files.bucket import BucketBlobs

_TRIED_FOR_S = 10.0

_opened: dict[tuple[int, str, Path], BucketBlobs] = {}
_tried: dict[str, tuple[float, str]] = {}
_lock = threading.Lock()


def blobs_of(settings: Settings) -> Blobs:
    """The blobs of a node.

    Raises:
        StoreError: what the bucket needs isn't installed, or the settings can't be used.
    """
    local = LocalBlobs(DataFolder(settings.node.data_dir))
    if not settings.storage.url:
        return local
    if not has_spool(settings):
        return bucket_of(settings)
    from cxr_node.store.files.spooled_blobs import SpooledBlobs  # imported here: a node without a spool needs none of it

    name = spool_name(settings.node.data_dir)
    return SpooledBlobs(bucket_of(settings), local, name, near_folder(settings), takes=settings.storage.spool)


def bucket_of(settings: Settings) -> BucketBlobs:
    """The bucket of storage.url; one client for a process, with its connections.

    Raises:
        StoreError: as `blobs_of`.
    """
    try:
        from cxr_node.store.files.bucket import BucketBlobs  # imported here: a node without a bucket needs none of it
    except ImportError as error:
        raise StoreError("storage.url needs obstore: install the extra `scale` (pip install 'cxr-node[scale]').") from error
    storage, near = settings.storage, near_folder(settings)
    secret = storage.secret_access_key.get_secret_value()
    key = (os.getpid(), f"{storage!r}{hash(secret)}", near)  # a fork has no threads of the client
    with _lock:
        if key not in _opened:
            _opened[key] = BucketBlobs(storage, near)
        return _opened[key]


def near_folder(settings: Settings) -> Path:
    """Where objects of the bucket lie while a role of this machine reads them."""
    return settings.node.data_dir.absolute() / "fetched"


def why_no_bucket(settings: Settings) -> str:
    """Why the bucket can't be used, for a person; empty if it can. Tries it every ten seconds at most."""
    if not settings.storage.url:
        return ""
    with _lock:
        tried_at, known = _tried.get(settings.storage.url, (float("-inf"), ""))
    if time.monotonic() - tried_at < _TRIED_FOR_S:
        return known
    found = try_bucket(settings)
    with _lock:
        _tried[settings.storage.url] = time.monotonic(), found
    return found


def try_bucket(settings: Settings) -> str:
    """Put, get, list and delete an object; why that failed, for a person, or an empty text."""
    name, content = f"probe/{uuid.uuid4().hex}", os.urandom(16)
    try:
        bucket = bucket_of(settings)
        bucket.put_bytes(f"{name}/object", content)
        if bucket.read_small(f"{name}/object") != content:
            return f"{settings.storage.url} gives back other bytes than it was given."
        if [blob.size_bytes for blob in bucket.list(name)] != [len(content)]:
            return f"{settings.storage.url} doesn't list an object that was just put."
        bucket.delete(f"{name}/object")
        if bucket.read_small(f"{name}/object") is not None:
            return f"{settings.storage.url} doesn't delete objects, so retention could not."
    except (BucketUnavailable, StoreError) as error:
        return str(error)
    return ""
