"""The data folder: private, with file names that cannot escape it; instances and results on their way into it.

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

from cxr_node.errors import StoreError
from cxr_node.records import ComposedObject, DataFolder, InstanceHeader, Job, Result, StoredInstance
from cxr_node.security.nofollow import refuse_links
from cxr_node.store import faults
from cxr_node.store.files.blobs import Blobs, new_key, publish, sync_folder

_LONGEST_WRITE_S = 3600.0
_INSTANCES, _RESULTS = DataFolder(Path()).instances.name, DataFolder(Path()).results.name
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


def make_folders(folders: DataFolder) -> None:
    """Make the data folder and what it holds, for the owner alone.

    Raises:
        StoreError: it can't be made or written.
    """
    inside = (folders.incoming, folders.instances, folders.unparsed, folders.results)
    try:
        refuse_links(*inside)
        for folder in (folders.root, *inside):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folders.instances / "ff").is_dir():
            # all of them now: made one by one while instances arrive, each costs its instance a flush of its own
            for number in range(256):
                (folders.instances / f"{number:02x}").mkdir(mode=0o700, exist_ok=True)
            sync_folder(folders.instances)
        for folder in (folders.instances, folders.results):
            with os.scandir(folder) as entries:
                refuse_links(*(Path(entry.path) for entry in entries if entry.is_symlink()))
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


def keep_instance(blobs: Blobs, temporary: Path, header: InstanceHeader, digest: str) -> StoredInstance:
    """Make a blob of a received file, safe from a power cut before this returns: a new one, whatever else is there.

    Its name begins with the digest of UID and content, so that no UID can become a path, and a file that has lost its
    row can be told from a damaged one.

    Args:
        blobs: where it is kept.
        temporary: the complete file, in the data folder's `incoming`.
        header: what it is.
        digest: of its data set without file meta.
    """
    faults.point("instance-received", header.sop_instance_uid)
    name = name_of(header, digest)
    key = new_key(_INSTANCES, name[:2], name)
    blob = blobs.put(key, temporary)
    faults.point("instance-kept", header.sop_instance_uid)
    return StoredInstance(header, key, blob.size_bytes, digest, blob.put_at, blobs.spool_of(key))


def name_of(header: InstanceHeader, digest: str) -> str:
    """How the name of an instance's blob begins, as 64 hexadecimal digits."""
    return hashlib.sha256(f"{header.sop_instance_uid}/{header.transfer_syntax_uid}/{digest}".encode()).hexdigest()


def keep_unparsed(folders: DataFolder, temporary: Path) -> Path:
    """Keep a data set that couldn't be parsed for a person to look at; gives its final path."""
    final = folders.unparsed / f"{uuid.uuid4().hex}.dcm"
    publish(temporary, str(final))
    return final


def set_aside(blobs: Blobs, folders: DataFolder, key: str) -> Path:
    """Move a damaged blob to where people look at what wasn't understood; gives its final path."""
    temporary = folders.incoming / f"{uuid.uuid4().hex}.aside"
    try:
        with blobs.fetch(key) as path:
            shutil.copyfile(path, temporary)
        final = keep_unparsed(folders, temporary)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    blobs.delete(key)
    return final


def write_result(blobs: Blobs, job: Job, composed: ComposedObject) -> Result:
    """Make a blob of a composed object, safe from a power cut before this returns: a new one, each time it is composed.

    Raises:
        StoreError: its SOP instance UID is none.
    """
    if not is_uid(composed.sop_instance_uid):
        raise StoreError(f"{composed.sop_instance_uid!r} is no UID")
    key = new_key(_RESULTS, f"{job.id % 256:02x}", composed.sop_instance_uid)
    blob = blobs.put_bytes(key, composed.content)
    faults.point("result-kept", job.sop_instance_uid)
    return Result(
        composed.kind,
        composed.sop_instance_uid,
        composed.sop_class_uid,
        composed.transfer_syntax_uid,
        key,
        blob.size_bytes,
    )


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
                if path.lstat().st_mtime < now - oldest_s:
                    path.unlink()
                    removed += 1
    return removed


def free_bytes(root: Path) -> int:
    """Free bytes for this user in the filesystem of `root`."""
    return shutil.disk_usage(root).free
