"""Blobs: immutable files under keys that are never used again, each owned by exactly one row.

There are three implementations: files in the data folder, here, objects in a bucket (`bucket`), and a bucket with a spool
before it (`spool`). `put` takes a complete file; nothing is appended, replaced or renamed. `fetch` gives a reader a local path,
and downloads the blob first if necessary. The module knows nothing of the database: a caller changes the owning row before it
deletes a blob.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from cxr_node.records import DataFolder
from cxr_node.security.nofollow import open_file


@dataclass(frozen=True)
class Blob:
    """What a store lists: the key, the size in bytes, and when it was put, in seconds since the epoch."""

    key: str
    size_bytes: int
    put_at: float


class Blobs(Protocol):
    """A store of immutable blobs. Errors of the store are `OSError`; a blob that isn't there is `FileNotFoundError`.

    Attributes:
        spool: the name of this host's spool, in which received blobs lie before the store has them; empty: there is none.
    """

    spool: str

    def spool_of(self, key: str) -> str:
        """`spool`, if a blob lies there; empty if the store has it."""

    def put(self, key: str, source: Path) -> Blob:
        """Keep a complete file under a new key; durable when this returns. The file is consumed."""

    def put_bytes(self, key: str, content: bytes) -> Blob:
        """Keep bytes under a new key; durable when this returns."""

    def open(self, key: str) -> BinaryIO:
        """A blob's content, from its beginning."""

    def fetch(self, key: str) -> AbstractContextManager[Path]:
        """A blob as a file to read, for as long as the context lasts."""

    def size(self, key: str) -> int | None:
        """A blob's size in bytes; None if it isn't there."""

    def delete(self, key: str) -> None:
        """Remove a blob; no error if it is gone already."""

    def list(self, prefix: str) -> Iterator[Blob]:
        """The blobs whose keys begin with a folder's name and a slash."""

    def now(self) -> float:
        """The time on the clock of `Blob.put_at`, seconds since the epoch."""


def is_there(blobs: Blobs, key: str, size_bytes: int, spool: str) -> bool:
    """Whether a blob is where its row says; one in the spool of another host can't be looked at, and is taken to be there."""
    return spool not in ("", blobs.spool) or blobs.size(key) == size_bytes


def new_key(folder: str, shard: str, name: str) -> str:
    """A key that was never used before: the name says what it is, the random part which arrival of it.

    Args:
        folder: "instances" or "results".
        shard: two hexadecimal digits, so that no folder holds too many files.
        name: hexadecimal digits or a UID.
    """
    return f"{folder}/{shard}/{name}-{os.urandom(8).hex()}.dcm"


def discard(blobs: Blobs, keys: Iterable[str]) -> None:
    """Remove blobs that no row owns any more. What can't be removed now is left to the sweep, which finds it."""
    for key in keys:
        try:
            blobs.delete(key)
        except OSError as error:
            import structlog  # imported here: `status` loads this module, and logs nothing

            structlog.get_logger().warning("a file without an owner stays for now", key=key.partition("/")[0], exc_info=error)


class LocalBlobs:
    """Blobs as files in the data folder: a key is the path from there."""

    def __init__(self, folders: DataFolder) -> None:
        self._root = f"{folders.root}"

    spool = ""

    def spool_of(self, key: str) -> str:
        """In none."""
        return ""

    def put(self, key: str, source: Path) -> Blob:
        """Rename the file, and flush file and folder: see `publish`."""
        final = self._path(key)
        try:
            found = publish(source, final)
        except FileNotFoundError:  # a folder of a first blob, or somebody has removed it: too seldom to look first
            if not source.exists():
                raise
            _make_folder(final)
            found = publish(source, final)
        return Blob(key, found.st_size, found.st_mtime)

    def put_bytes(self, key: str, content: bytes) -> Blob:
        """As `put`, of a file that is written here; what a full disk left of it keeps others from their room, and goes."""
        temporary = Path(f"{self._path(key)}.tmp")
        if not temporary.parent.is_dir():
            _make_folder(str(temporary))
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
            return self.put(key, temporary)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def open(self, key: str) -> BinaryIO:
        """The file."""
        return os.fdopen(open_file(self._path(key), os.O_RDONLY), "rb")

    def fetch(self, key: str) -> AbstractContextManager[Path]:
        """The file itself, which is near."""
        return nullcontext(Path(self._path(key)))

    def size(self, key: str) -> int | None:
        """As the file system has it."""
        try:
            found = os.lstat(self._path(key))
            return found.st_size if stat.S_ISREG(found.st_mode) else None
        except FileNotFoundError:
            return None

    def delete(self, key: str) -> None:
        """Unlink the file."""
        Path(self._path(key)).unlink(missing_ok=True)

    def list(self, prefix: str) -> Iterator[Blob]:
        """The complete files of a folder; what is being written has another suffix."""
        root = Path(self._root)
        for path in (root / prefix).glob("*/*.dcm"):
            with suppress(FileNotFoundError):
                found = path.lstat()
                if not stat.S_ISREG(found.st_mode):  # a link that somebody has planted
                    continue
                yield Blob(str(path.relative_to(root)), found.st_size, found.st_mtime)

    def now(self) -> float:
        """The file system's clock is the machine's."""
        return time.time()

    def path(self, key: str) -> Path:
        """Where a blob's file is."""
        return Path(self._path(key))

    def link(self, key: str, target: Path) -> None:
        """Give a blob's file one more name, which lasts when the blob is removed."""
        os.link(self._path(key), target, follow_symlinks=False)

    def _path(self, key: str) -> str:
        if key.startswith("/") or ".." in key.split("/"):
            raise ValueError("a key that leads outside the data folder")
        return f"{self._root}/{key}"


def publish(temporary: Path, final: str) -> os.stat_result:
    """Rename, flush the file, flush the folder; what the file system says of the file. It lasts when this returns.

    The rename comes first because a journal then writes both in one commit, and the folder's flush has little left to do: on a
    busy machine one association stored 154 instances of 2.1 MB a second instead of 136 (`benchmarks.receive`, one run). A power
    cut in between may leave an incomplete file under its final name, without a row: `doctor` and `restore` compare an instance
    with the digest in its name, and results without a row are removed.
    """
    descriptor = open_file(temporary, os.O_RDONLY)
    try:
        os.fchmod(descriptor, 0o600)
        os.replace(temporary, final)  # noqa: PTH105 - this and the next, as paths, take as long as the system's calls
        try:
            os.fsync(descriptor)
            sync_folder(os.path.dirname(final))  # noqa: PTH120
        except OSError:  # a disk that is full or failing: the caller says so to whoever sent it
            Path(final).unlink(missing_ok=True)
            raise
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path | str) -> None:
    """Make what was done in a folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(final: str) -> None:
    folder = Path(final).parent
    folder.mkdir(mode=0o700, exist_ok=True)
    sync_folder(folder.parent)
