"""Instances and results as files: durable, private, and named by what can't escape the data folder.

Knows nothing of the database.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path

from cxr_node import faults
from cxr_node.errors import StoreError
from cxr_node.records import ComposedObject, DataFolder, InstanceHeader, Job, Result, StoredInstance

_LONGEST_WRITE_S = 3600.0
_INSTANCES = DataFolder(Path()).instances.name
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


def make_folders(folders: DataFolder) -> None:
    """Make the data folder and what it holds, for the owner alone.

    Raises:
        StoreError: it can't be made or written.
    """
    try:
        for folder in (folders.root, folders.incoming, folders.instances, folders.unparsed, folders.results):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folders.instances / "ff").is_dir():
            # all of them now: made one by one while instances arrive, each costs its instance a flush of its own
            for number in range(256):
                (folders.instances / f"{number:02x}").mkdir(mode=0o700, exist_ok=True)
            _sync_folder(folders.instances)
    except OSError as error:
        raise StoreError(
            f"The data folder {folders.root} can't be made ({error.strerror}): "
            "set node.data_dir to a folder that the user running cxr-node may write."
        ) from error
    if not os.access(folders.root, os.W_OK | os.X_OK):
        raise StoreError(f"The data folder {folders.root} is not writable for this user: change its owner or node.data_dir.")


def is_uid(value: str) -> bool:
    """Whether a text is a UID (PS3.5 section 9.1): digits and single dots, at most 64 characters."""
    return len(value) <= 64 and _UID.fullmatch(value) is not None


def keep_instance(folders: DataFolder, temporary: Path, header: InstanceHeader, digest: str) -> StoredInstance:
    """Give a received file its final place, safe from a power cut before this returns.

    The name is the digest of UID and content, so that no UID can become a path, revisions lie side by side, and the
    same instance received twice at once ends in one file.

    Args:
        folders: the data folder.
        temporary: the complete file, in `folders.incoming`.
        header: what it is.
        digest: of its data set without file meta.
    """
    faults.point("instance-received", header.sop_instance_uid)
    name = name_of(header, digest)
    path = f"{_INSTANCES}/{name[:2]}/{name}.dcm"
    final = f"{folders.root}/{path}"
    try:
        size_bytes = _publish(temporary, final)
    except FileNotFoundError:  # somebody has removed the folder, which is seldom enough not to look first
        (folders.root / path).parent.mkdir(mode=0o700)
        _sync_folder(folders.instances)
        size_bytes = _publish(temporary, final)
    faults.point("instance-kept", header.sop_instance_uid)
    return StoredInstance(header, path, size_bytes, digest)


def name_of(header: InstanceHeader, digest: str) -> str:
    """What an instance's file is called, without its suffix."""
    return hashlib.sha256(f"{header.sop_instance_uid}/{header.transfer_syntax_uid}/{digest}".encode()).hexdigest()


def keep_unparsed(folders: DataFolder, temporary: Path) -> Path:
    """Keep a data set that couldn't be parsed for a person to look at; gives its final path."""
    final = folders.unparsed / f"{uuid.uuid4().hex}.dcm"
    _publish(temporary, final)
    return final


def write_result(folders: DataFolder, job: Job, composed: ComposedObject) -> Result:
    """Write a composed object, safe from a power cut before this returns; writing it again replaces it."""
    if not is_uid(composed.sop_instance_uid):
        raise StoreError(f"{composed.sop_instance_uid!r} is no UID")
    folder = folders.results / f"{job.id % 256:02x}"
    if not folder.is_dir():
        folder.mkdir(mode=0o700, exist_ok=True)
        _sync_folder(folders.results)
    final = folder / f"{composed.sop_instance_uid}.dcm"
    temporary = final.with_suffix(f".{os.getpid()}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(composed.content)
        size_bytes = _publish(temporary, final)
    except OSError:
        temporary.unlink(missing_ok=True)  # what a full disk left of it keeps others from their room
        raise
    faults.point("result-kept", job.sop_instance_uid)
    return Result(
        composed.kind,
        composed.sop_instance_uid,
        composed.sop_class_uid,
        composed.transfer_syntax_uid,
        str(final.relative_to(folders.root)),
        size_bytes,
    )


def remove(folders: DataFolder, path: str) -> None:
    """Remove a file of the store; no error if it is gone already."""
    (folders.root / path).unlink(missing_ok=True)


def remove_stale(folders: DataFolder, unparsed_days: float) -> int:
    """Remove what no row tells of: data sets that weren't understood, past their time, and results half-written by the dead.

    Returns:
        how many files were removed.
    """
    now = time.time()
    removed = 0
    for paths, oldest_s in (
        (folders.unparsed.glob("*.dcm"), unparsed_days * 86400),
        (folders.results.glob("*/*.tmp"), _LONGEST_WRITE_S),
    ):
        for path in paths:
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < now - oldest_s:
                    path.unlink()
                    removed += 1
    return removed


def free_bytes(root: Path) -> int:
    """Free bytes for this user in the filesystem of `root`."""
    return shutil.disk_usage(root).free


def _publish(temporary: Path, final: Path | str) -> int:
    """Flush, rename, flush the folder (the order that makes a rename durable); the file's size in bytes."""
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        os.fchmod(descriptor, 0o600)
        os.fsync(descriptor)
        size_bytes = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    os.replace(temporary, final)  # noqa: PTH105 - this and the next, as paths, take as long as the system's calls
    _sync_folder(os.path.dirname(final))  # noqa: PTH120
    return size_bytes


def _sync_folder(folder: Path | str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
