"""Who uses the data folder: locks that the system releases, however a process ends."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cxr_node.errors import StoreError


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
def nobody_using(root: Path) -> Iterator[None]:
    """No role runs on this machine, and none starts meanwhile.

    Raises:
        StoreError: one does.
    """
    busy = f"A cxr-node uses the data folder {root.absolute()}: stop it first."
    with _locked(root / ".serve.lock", fcntl.LOCK_EX, busy), _locked(root / ".use.lock", fcntl.LOCK_EX, busy):
        yield


@contextmanager
def _locked(path: Path, kind: int, busy: str) -> Iterator[None]:
    try:
        file = path.open("w")
    except OSError as error:
        raise StoreError(f"{path} can't be written ({error.strerror}): change its owner, or the way it is mounted.") from error
    with file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(busy) from error
        yield
