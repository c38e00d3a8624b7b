"""Blobs in an S3 bucket: the second implementation of `blobs.Blobs`, through obstore.

A PUT is atomic, and durable when it is answered. Requests are retried for a while if the object store is busy or unavailable, and
then fail with `BucketUnavailable` and a reason. Files that `fetch` downloads are in a folder of the data folder, locked while
they are in use.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, BinaryIO, cast

import obstore
from obstore import exceptions
from obstore.store import S3Store

from cxr_node.errors import BucketUnavailable, StoreError
from cxr_node.security.nofollow import open_file
from cxr_node.settings import StorageSettings
from cxr_node.store.files.blobs import Blob

_PART_BYTES = 8 * 2**20
_AT_ONCE_BYTES = 4 * _PART_BYTES
"""Larger files go in parts, so that no process holds a whole one in memory."""
_PARTS_AT_ONCE = 2
_CHUNK_BYTES = 4 * 2**20
_SMALL_BYTES = 256 * 2**20
_CONNECT_S = 5.0
_MOST_RETRIES = 5
_CLOCK = "clock"
_STATUS = re.compile(r"status code: (\d{3})|status: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z]{1,64})</Code>")
_CURES = {
    "NoSuchBucket": "there is no such bucket. Make it, or correct storage.url",
    "AccessDenied": "access is denied. The key needs to put, get, list and delete objects below storage.url",
    "InvalidAccessKeyId": "it doesn't know storage.access_key_id",
    "SignatureDoesNotMatch": "the signature is wrong. Check storage.secret_access_key and storage.region",
    "RequestTimeTooSkewed": "this machine's clock is wrong. Set it by NTP",
    "SlowDown": "it is overloaded (SlowDown)",
    "QuotaExceeded": "its quota is exceeded. Raise it",
    "XMinioStorageFull": "it is full. Free space there",
}
"""Error codes of S3, and what to do."""


class BucketBlobs:
    """Blobs as objects below a prefix: `storage.url`/key.

    Args:
        settings: the settings of the storage.
        near: a folder for the files that `fetch` brings.
    """

    def __init__(self, settings: StorageSettings, near: Path) -> None:
        self._url, self._endpoint = settings.url, settings.endpoint or "Amazon S3"
        self._near = near
        self._store = _connect(settings)

    spool = ""

    def spool_of(self, key: str) -> str:
        """In none."""
        return ""

    def put(self, key: str, source: Path) -> Blob:
        """Upload the file; then remove it."""
        blob = self.upload(key, source)
        source.unlink(missing_ok=True)
        return blob

    def upload(self, key: str, source: Path) -> Blob:
        """Upload a file, which stays."""
        with os.fdopen(open_file(source, os.O_RDONLY), "rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            put_at = os.fstat(file.fileno()).st_mtime
            self._upload(key, file, size_bytes)
        return Blob(key, size_bytes, put_at)

    def put_bytes(self, key: str, content: bytes) -> Blob:
        """Upload bytes."""
        with self._in_words():
            obstore.put(self._store, key, content, use_multipart=False)
        return Blob(key, len(content), self.now())

    def open(self, key: str) -> BinaryIO:
        """A copy that has no name."""
        self._near.mkdir(mode=0o700, exist_ok=True)
        file = TemporaryFile(dir=self._near)  # noqa: SIM115 - it is the caller's
        try:
            self._download(key, file)
        except BaseException:
            file.close()
            raise
        file.seek(0)
        return cast("BinaryIO", file)

    @contextmanager
    def fetch(self, key: str) -> Iterator[Path]:
        """A copy, removed afterwards."""
        self._near.mkdir(mode=0o700, exist_ok=True)
        path = self._near / f"{uuid.uuid4().hex}.dcm"
        descriptor = open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # `remove_leftovers` leaves it alone
            with os.fdopen(os.dup(descriptor), "wb") as file:
                self._download(key, file)
            yield path
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def size(self, key: str) -> int | None:
        """Ask for the object's header."""
        try:
            with self._in_words():
                return int(obstore.head(self._store, key)["size"])
        except FileNotFoundError:
            return None

    def delete(self, key: str) -> None:
        """Delete the object."""
        with suppress(FileNotFoundError), self._in_words():
            obstore.delete(self._store, key)

    def list(self, prefix: str) -> Iterator[Blob]:
        """List a page at a time; without a prefix, all."""
        beginnings: set[str] = set()
        with self._in_words():
            for page in obstore.list(self._store, f"{prefix}/" if prefix else None, chunk_size=1000):
                beginning = str(page[0]["path"])
                if beginning in beginnings:
                    raise BucketUnavailable(f"{self._url} lists the same objects again and again.")
                beginnings.add(beginning)
                for found in page:
                    yield Blob(str(found["path"]), int(found["size"]), found["last_modified"].timestamp())

    def now(self) -> float:
        """The object store's clock, by which it says when an object was put: that of an object put now."""
        key = f"{_CLOCK}/{uuid.uuid4().hex}"
        with self._in_words():
            obstore.put(self._store, key, b"-", use_multipart=False)
            try:
                return obstore.head(self._store, key)["last_modified"].timestamp()
            finally:
                obstore.delete(self._store, key)

    def read_small(self, key: str) -> bytes | None:
        """The whole of a small object; None if it isn't there."""
        try:
            with self._in_words():
                answer = obstore.get(self._store, key)
                size_bytes = int(answer.meta["size"])
                if size_bytes <= _SMALL_BYTES:
                    return bytes(answer.bytes())
        except FileNotFoundError:
            return None
        # the library would take memory for all of it at once, and end the process where there is not enough
        raise BucketUnavailable(f"{self._url} says that a small object has {size_bytes} bytes.")

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """A part of an object."""
        with self._in_words():
            return bytes(obstore.get_range(self._store, key, start=start, length=length))

    def _upload(self, key: str, file: IO[bytes], size_bytes: int) -> None:
        with self._in_words():
            if size_bytes <= _AT_ONCE_BYTES:
                obstore.put(self._store, key, file.read(), use_multipart=False)
            else:
                obstore.put(
                    self._store,
                    key,
                    cast("BinaryIO", file),
                    use_multipart=True,
                    chunk_size=_PART_BYTES,
                    max_concurrency=_PARTS_AT_ONCE,
                )

    def _download(self, key: str, file: IO[bytes]) -> None:
        with self._in_words():
            answer = obstore.get(self._store, key)
            wanted = int(answer.meta["size"])
            if wanted > shutil.disk_usage(self._near).free:
                raise BucketUnavailable(f"{self._url} says that an object has {wanted} bytes: there is no room for it here.")
            received = 0
            for chunk in answer.stream(min_chunk_size=_CHUNK_BYTES):
                received += len(chunk)
                file.write(chunk)
        file.flush()
        if received != wanted:
            raise BucketUnavailable(f"{self._url} sent {received} of {wanted} bytes of an object.")

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """Turn errors of the library into those of a store."""
        try:
            yield
        except (FileNotFoundError, exceptions.BaseError) as error:  # what isn't there is the former, of Python's own
            code, status = _code_and_status(str(error))
            if isinstance(error, FileNotFoundError) and code != "NoSuchBucket":
                raise FileNotFoundError(2, "no such object in the bucket") from None
            # not chained: what the object store says may quote keys
            raise BucketUnavailable(f"{self._url} at {self._endpoint} can't be used: {_reason(error, code, status)}.") from None


def _connect(settings: StorageSettings) -> S3Store:
    client: dict[str, Any] = {
        "allow_http": settings.endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=min(_CONNECT_S, settings.timeout_s)),
        "timeout": timedelta(seconds=settings.timeout_s),
        "user_agent": "cxr-node",
    }
    if settings.ca is not None:
        try:
            client["root_certificate"] = settings.ca.read_bytes()
        except OSError as error:
            raise StoreError(f"storage.ca: {settings.ca} can't be read ({error.strerror}).") from error
    config: dict[str, Any] = {"region": settings.region, "virtual_hosted_style_request": settings.virtual_hosted}
    if settings.endpoint:
        config["endpoint"] = settings.endpoint
    if settings.access_key_id:
        config["access_key_id"] = settings.access_key_id
        config["secret_access_key"] = settings.secret_access_key.get_secret_value()
    bucket, _, prefix = settings.url.removeprefix("s3://").partition("/")
    retry: Any = {
        "max_retries": _MOST_RETRIES,
        "retry_timeout": timedelta(seconds=settings.timeout_s),
        "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=5), "base": 2},
    }
    try:
        return S3Store(bucket, prefix=prefix or None, config=config, client_options=client, retry_config=retry)  # type: ignore[arg-type]
    except (exceptions.BaseError, ValueError):
        wrong = "storage.ca holds no certificate that can be read" if settings.ca else "see storage.endpoint and storage.region"
        raise StoreError(f"storage.url: {settings.url} can't be used: {wrong}.") from None


def _code_and_status(said: str) -> tuple[str, str]:
    code, status = _CODE.search(said), _STATUS.search(said)
    return code.group(1) if code else "", next(filter(None, status.groups()), "") if status else ""


def _reason(error: Exception, code: str, status: str) -> str:
    if code in _CURES:
        return _CURES[code]
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
        return _CURES["AccessDenied"]
    said = str(error)
    if status:
        return f"it answers {status}{f' ({code})' if code else ''}"
    if "certificate" in said:
        return "its certificate is not trusted. Name its authority in storage.ca"
    if "timed out" in said or "TimedOut" in said:
        return "it didn't answer in time"
    if "credential" in said or "169.254" in said:
        return "no credentials were found. Set storage.access_key_id and storage.secret_access_key"
    return "it can't be reached, or the connection broke. Check storage.endpoint and the network"
