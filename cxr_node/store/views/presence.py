"""Running roles and their status messages: files that are locked while their process lives.

Nothing here is written to the database or flushed: the status of a role disappears with it.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_FOLDER = ".roles"


class Presence:
    """Shows that this process runs a role, from now until `end` or its own end, however that comes.

    Args:
        root: the data folder.
        role: what it runs as.
    """

    def __init__(self, root: Path, role: str) -> None:
        folder = root / _FOLDER
        self._descriptor = -1
        with suppress(OSError):  # a full disk keeps no role from its work: it is shown as missing
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path = folder / f"{role}.{uuid.uuid4().hex}"
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._descriptor = descriptor

    def say(self, what: dict[str, Any]) -> None:
        """Replace what it says of itself."""
        if self._descriptor >= 0:
            content = json.dumps(what).encode()
            with suppress(OSError):
                os.pwrite(self._descriptor, content.ljust(os.fstat(self._descriptor).st_size), 0)
                os.ftruncate(self._descriptor, len(content))

    def end(self) -> None:
        """Show it no more."""
        if self._descriptor >= 0:
            with suppress(OSError):
                self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = -1


@contextmanager
def showing(root: Path, role: str) -> Iterator[Presence]:
    """Show a role for the length of the block."""
    presence = Presence(root, role)
    try:
        yield presence
    finally:
        presence.end()


def present(root: Path) -> list[tuple[str, dict[str, Any]]]:
    """The roles of living processes on this machine, and what each says; forgets the files of dead ones."""
    found = []
    try:
        paths = sorted((root / _FOLDER).iterdir())
    except OSError:
        return []
    for path in paths:
        with suppress(OSError), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append((path.name.partition(".")[0], _said(file.read())))
            else:
                if os.fstat(file.fileno()).st_mtime < _recently():
                    path.unlink()
    return found


def _said(content: bytes) -> dict[str, Any]:
    try:
        said = json.loads(content or b"{}")
    except ValueError:  # read while it is written
        return {}
    return said if isinstance(said, dict) else {}


def _recently() -> float:
    """Before this a file was made whose process must have locked it since."""
    return time.time() - 60.0
