"""Opens and writes files without following links: a link is an error, and its target stays untouched.

A person with access to the node's user could plant links in its folders and wait for root to run a command there.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cxr_node.errors import StoreError


def open_file(path: Path | str, flags: int, mode: int = 0o600) -> int:
    """A descriptor, as `os.open` gives it, of a file that is no link.

    Raises:
        OSError: as `os.open`; ELOOP if the last part of the path is a link.
    """
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode)


def write_anew(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Put a file in the place of whatever has its name: what a link there leads to stays as it is.

    Raises:
        OSError: it can't be written; nothing is left of it.
    """
    temporary = path.with_name(f".{path.name[:200]}.{os.urandom(8).hex()}.tmp")
    try:
        with os.fdopen(open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def is_link(path: Path) -> bool:
    """Whether there is a link of this name, wherever it leads."""
    try:
        return stat.S_ISLNK(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def refuse_links(*paths: Path) -> None:
    """See that none of these is a link.

    Raises:
        StoreError: one is; says which and what to do.
    """
    for path in paths:
        if is_link(path):
            raise StoreError(
                f"{path} is a link that the node did not make: the node does not follow it. Find out who created it, and "
                "remove it."
            )
