"""Locks on the data folder, which the system releases however a process ends."""

from __future__ import annotations

import fcntl
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cxr_node.errors import StoreError
from cxr_node.security.nofollow import open_file, refuse_links

_PROCESS_FILES = ".processes"
_NAME = re.compile(r"[0-9a-f]{32}")


@contextmanager
def serving(root: Path) -> Iterator[None]:
    """One supervisor a data folder.

    Raises:
        StoreError: another one serves it.
    """
    with _locked(
        root / ".serve.lock",
        fcntl.LOCK_EX,
        f"Another cxr-node serves the data folder {root.absolute()}: stop it, or set node.data_dir to another folder.",
    ):
        yield


@contextmanager
def using(root: Path) -> Iterator[None]:
    """A role that runs, beside others.

    Raises:
        StoreError: the folder is being restored.
    """
    with _locked(
        root / ".use.lock", fcntl.LOCK_SH, f"The data folder {root.absolute()} is being restored: wait until that is done."
    ):
        yield


@contextmanager
def exclusive_use(root: Path) -> Iterator[None]:
    """No role runs on this machine, and none starts meanwhile.

    Raises:
        StoreError: one does.
    """
    busy = f"A cxr-node uses the data folder {root.absolute()}: stop it first."
    with _locked(root / ".serve.lock", fcntl.LOCK_EX, busy), _locked(root / ".use.lock", fcntl.LOCK_EX, busy):
        yield


@contextmanager
def sending_audit(root: Path, number: int) -> Iterator[None]:
    """One process sends the audit log to a repository: the one of this number in the settings.

    Raises:
        StoreError: another one does.
    """
    busy = "Another process sends the audit log to this repository."
    with _locked(root / f".audit-{number}.lock", fcntl.LOCK_EX, busy):
        yield


@contextmanager
def uploading(root: Path) -> Iterator[None]:
    """One process empties the spool of a data folder.

    Raises:
        StoreError: another one does.
    """
    busy = f"Another process uploads from the spool in {root.absolute()}: stop it first."
    with _locked(root / ".upload.lock", fcntl.LOCK_EX, busy):
        yield


@contextmanager
def _locked(path: Path, kind: int, busy: str) -> Iterator[None]:
    refuse_links(path)
    try:
        file = os.fdopen(open_file(path, os.O_WRONLY | os.O_CREAT), "w")
    except OSError as error:
        raise StoreError(f"{path} can't be written ({error.strerror}): change its owner, or the way it is mounted.") from error
    with file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(busy) from error
        yield


def register_process(root: Path) -> str:
    """Give this process a name that no other ever had, and show that it lives by a file of that name, locked until it ends.

    Processes in containers see each other by these files too, whatever their host names and process IDs are.

    Raises:
        StoreError: the file can't be made.
    """
    folder = root / _PROCESS_FILES
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            name = uuid.uuid4().hex
            descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            with suppress(BlockingIOError):  # somebody just looks whether it is one of the dead: another name
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_nlink:  # and wasn't taken for one
                    return name  # the descriptor stays open: the system closes it when the process ends
            os.close(descriptor)
    except OSError as error:
        raise StoreError(f"{folder} can't be written ({error.strerror}): change its owner, or free disk space.") from error


def ended_processes(root: Path) -> set[str]:
    """The processes named by `register_process` that are known to have ended; of one whose file is gone nothing is known."""
    try:
        names = [path.name for path in (root / _PROCESS_FILES).iterdir()]
    except OSError:
        return set()
    return {name for name in names if _is_locked(root, name) is False}


def is_live(root: Path, name: str) -> bool:
    """Whether a process that `register_process` named is known to live."""
    return _is_locked(root, name) is True


def forget_processes(root: Path, names: Iterable[str]) -> None:
    """Remove the files of processes that have ended; first end what they held."""
    for name in names:
        with suppress(OSError):
            (root / _PROCESS_FILES / name).unlink()


def _is_locked(root: Path, name: str) -> bool | None:
    """None: that can't be known."""
    if not _NAME.fullmatch(name):
        return None
    try:
        with (root / _PROCESS_FILES / name).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False
