"""Blobs: immutable files under keys that are never used again, each owned by exactly one row.

A key says nothing to the file system but a folder and a name, so that an object store can be the second implementation:
`put` takes a complete file, nothing is appended to, replaced or renamed, and a reader asks for a blob by `fetch`, which may
have to bring it near first. Knows nothing of the database: whoever deletes has changed the owning row before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from cxr_node.records import DataFolder


@dataclass(frozen=True)
class Blob:
    """What a store lists: the key, the size in bytes, and when it was put, in seconds since the epoch."""

    key: str
    size_bytes: int
    put_at: float


class Blobs(Protocol):
    """A store of immutable blobs. Errors of the store are `OSError`; a blob that isn't there is `FileNotFoundError`."""

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


def new_key(folder: str, shard: str, name: str) -> str:
    """A key that was never used before: the name says what it is, the random part which arrival of it.

    Args:
        folder: "instances" or "results".
        shard: two hexadecimal digits, so that no folder holds too many files.
        name: hexadecimal digits or a UID.
    """
    return f"{folder}/{shard}/{name}-{os.urandom(8).hex()}.dcm"


class LocalBlobs:
    """Blobs as files in the data folder: a key is the path from there."""

    def __init__(self, folders: DataFolder) -> None:
        self._root = f"{folders.root}"

    def put(self, key: str, source: Path) -> Blob:
        """Flush the file, rename it, flush the folder: the order that makes a rename durable."""
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
        return Path(self._path(key)).open("rb")

    def fetch(self, key: str) -> AbstractContextManager[Path]:
        """The file itself, which is near."""
        return nullcontext(Path(self._path(key)))

    def size(self, key: str) -> int | None:
        """As the file system has it."""
        try:
            return os.stat(self._path(key)).st_size  # noqa: PTH116 - asked of each duplicate
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
                yield Blob(str(path.relative_to(root)), found.st_size, found.st_mtime)

    def _path(self, key: str) -> str:
        if key.startswith("/") or ".." in key.split("/"):
            raise ValueError("a key that leads out of the data folder")
        return f"{self._root}/{key}"


def publish(temporary: Path, final: str) -> os.stat_result:
    """Flush, rename, flush the folder (the order that makes a rename durable); what the file system says of the file."""
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        os.fchmod(descriptor, 0o600)
        os.fsync(descriptor)
        found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, final)  # noqa: PTH105 - this and the next, as paths, take as long as the system's calls
    sync_folder(os.path.dirname(final))  # noqa: PTH120
    return found


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
